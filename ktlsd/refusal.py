"""What keeps ktlsd from doing as it was told."""


class Refusal(Exception):
    """The text is one line for the operator: what is wrong, where, and what to do."""
