"""Exchange of records and state between gateways on one database."""
