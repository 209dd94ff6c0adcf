"""Who is next: tenants, shares, queues."""
