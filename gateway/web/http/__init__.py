"""HTTP connections, requests, answers and the site."""
