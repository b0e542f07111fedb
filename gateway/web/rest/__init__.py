"""REST interfaces of scales, statistics, raw samples and the gateway itself."""
