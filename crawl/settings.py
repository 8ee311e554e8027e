"""The thresholds of all rules, and how --set changes them.

Each rule has its thresholds, with their published values, as keyword arguments. So a setting needs
no table of its own: its name is the rule's first word and the argument's name.
"""
import math

from crawl.duplicates import exact, signature
from crawl.rules import (c4_lines, fineweb, gopher_quality, gopher_repetition, language_rule,
                         mask_pii, url_rule)

RULES = {"url": url_rule, "language": language_rule, "gopher_repetition": gopher_repetition,
         "gopher_quality": gopher_quality, "c4": c4_lines, "fineweb": fineweb, "pii": mask_pii,
         "exact": exact, "minhash": signature}


def read_settings(changes=()):
    """What --set was given -> the thresholds of all rules, and what each setting's name stands for:

        ["gopher_min_words=20", "c4=off"] ->
        {"gopher_quality": {"min_words": 20, "max_words": 100000, ...}, "c4": None, ...},
        {"gopher_min_words": ("gopher_quality", "min_words"), ...}"""
    settings = {rule: dict(getattr(function, "checks", function).__kwdefaults__)
                for rule, function in RULES.items()}
    names = {f"{rule.split('_')[0]}_{key}": (rule, key)
             for rule, limits in settings.items() for key in limits}
    off = []
    for change in changes:
        name, _, value = change.partition("=")
        if name in settings and value == "off":
            off.append(name)
            continue
        try:
            rule, key = names[name]
            settings[rule][key] = parse_setting(value, settings[rule][key])
        except (KeyError, ValueError, OverflowError):
            raise ValueError(f"--set {change}: no such setting, or neither a number nor on or off; "
                             "python data.py --help lists all") from None
    if not all(n >= 1 for n in settings["minhash"].values()):
        raise ValueError("--set minhash_...: words, bands and rows must be at least 1")
    return settings | dict.fromkeys(off), names


def parse_setting(text, default):
    """The value of a setting, of the kind of its default; a number that is off becomes NaN."""
    if isinstance(default, bool):
        return {"on": True, "off": False}[text]
    if isinstance(default, str):
        return text
    return math.nan if text == "off" else type(default)(float(text))


def spell_out(settings):
    """The settings as JSON can hold them: NaN, the only value unlike itself, becomes "off"."""
    return {rule: limits and {name: value if value == value else "off"
            for name, value in limits.items()} for rule, limits in settings.items()}
