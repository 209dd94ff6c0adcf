"""The namespace face: unmodified programs see a mock machine as the machine that they run on.

A process with user, mount and network namespaces of its own gets the host's rendered tree as its ``/sys``, parts of
its ``/proc`` and a ``/dev`` with the machine's device nodes. :mod:`~hal_mocks.namespace.command` runs a command so
(``hal-mock run``), :mod:`~hal_mocks.namespace.holder` keeps such a place for the tests of a process.
"""
