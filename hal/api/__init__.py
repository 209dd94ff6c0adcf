"""The broker's surface for programs: in this process, over the journal in its folder."""
