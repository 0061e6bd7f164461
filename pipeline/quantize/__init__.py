"""From a float net to an integer one: fold, judge, observe, search, record, quantize, evaluate."""
