"""Encoders in worker processes: one for each device, or several on a CPU, behind one `Encoder`."""
