"""The production broker on virtual time: everything that can go wrong, from one seed.

``python -m tests.simulation 0 100`` runs seeds 0 to 99; one seed prints its trace with ``--trace``.
"""
