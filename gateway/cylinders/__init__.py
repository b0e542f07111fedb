"""The plant's own table of cylinders: asked for a commit's cylinder, within a bounded time."""
