"""The current state of scales, machines and gateways."""
