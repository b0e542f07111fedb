"""Where bytes come in: listeners, dialled and serial lines, DAQ connections."""
