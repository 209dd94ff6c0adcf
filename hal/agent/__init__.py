"""A node's side: one look at the machine, devices prepared for holders and taken back."""
