"""The benchmark tool: a light load generator, what it measured, and its reports.

pictures ─▶ endpoint (bytes of a request) ─▶ load (closed or open loop over connections) ─▶ measured ─▶ results, plot, compare
"""
