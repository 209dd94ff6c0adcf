"""The lab: a Debian kernel in QEMU with hardware that this machine lacks, and the real plugins inside."""
