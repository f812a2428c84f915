"""The report of finished runs: tables, statistics and figures."""
