"""Who is next: tenants, shares, queues. What fair means is written down in ``docs/explanation/fairness.md``."""
