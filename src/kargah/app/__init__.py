"""The top floor: the server's assembly and the command `kargah`."""
