RULES = {"win": "spam", "free": "spam", "prize": "spam"}


def first_match(text, rules):
    return next((label for word, label in rules.items() if word in text.lower()), None)
