"""What a module draws with, kept to look at."""


def kept(monkeypatch, module, name):
    """A list that every object of ``module``'s class ``name`` is put into when it is made."""
    made, own = [], getattr(module, name)

    class Kept(own):
        def __init__(self, *args, **others):
            super().__init__(*args, **others)
            made.append(self)

    monkeypatch.setattr(module, name, Kept)
    return made
