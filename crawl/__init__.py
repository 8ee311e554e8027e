"""The engine of data.py. Reading order: warc.py (files become pages), html.py (a page becomes its
main text), language.py, rules.py (what is kept and why), duplicates.py (what occurs twice),
settings.py (the thresholds of all rules)."""
