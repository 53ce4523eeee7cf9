"""What touches a library, a file or a device: each module makes one of the domain's ports real."""
