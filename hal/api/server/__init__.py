"""The broker behind a socket: HTTP over a Unix socket, and over TCP with mutual TLS or signed tokens."""
