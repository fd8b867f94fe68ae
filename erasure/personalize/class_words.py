"""Class words that are ambiguous or too broad: semantic preservation would pull an instance towards the wrong sense."""

from ..errors import InputError

_SENSES: dict[str, tuple[str, str]] = {
    "bass": ("bass guitar", "bass fish"),
    "bat": ("fruit bat", "baseball bat"),
    "bow": ("archery bow", "hair bow"),
    "bug": ("beetle", "insect"),
    "cardinal": ("cardinal bird", "priest"),
    "club": ("golf club", "night club"),
    "crane": ("crane bird", "construction crane"),
    "date": ("date fruit", "calendar"),
    "fan": ("electric fan", "football fan"),
    "glasses": ("eyeglasses", "drinking glasses"),
    "jaguar": ("jaguar cat", "sports car"),
    "keyboard": ("computer keyboard", "piano keyboard"),
    "kiwi": ("kiwi fruit", "kiwi bird"),
    "mole": ("mole animal", "birthmark"),
    "mouse": ("field mouse", "computer mouse"),
    "nail": ("iron nail", "finger nail"),
    "orange": ("orange fruit", "orange cat"),
    "organ": ("church organ", "human organ"),
    "palm": ("palm tree", "palm of a hand"),
    "pen": ("fountain pen", "sheep pen"),
    "pipe": ("tobacco pipe", "water pipe"),
    "pitcher": ("water pitcher", "baseball pitcher"),
    "plant": ("potted plant", "power plant"),
    "racket": ("tennis racket", "crowd"),
    "ring": ("finger ring", "boxing ring"),
    "ruler": ("wooden ruler", "king"),
    "seal": ("seal animal", "wax seal"),
    "spring": ("coil spring", "spring garden"),
    "tank": ("army tank", "fish tank"),
    "temple": ("buddhist temple", "forehead"),
    "trunk": ("travel trunk", "tree trunk"),
    "turkey": ("turkey bird", "country"),
}

_BROAD = ("animal", "object", "thing", "item", "product", "stuff", "image", "picture", "photo", "something")


def check_class_word(word: str) -> str:
    """Return a class word as it is used, without spaces around it.

    Raises:
        InputError: There is none, or it has several senses, or it names nearly everything.
    """
    cleaned = " ".join(word.split())
    if not cleaned:
        raise InputError(
            f"class: expected the class of what the images show, got {word!r}. Write for example --class dog."
        )
    if cleaned.casefold() in _SENSES:
        one, other = _SENSES[cleaned.casefold()]
        raise InputError(f"class: expected a word of one sense, got {word!r}. Say which: {one!r} or {other!r}.")
    if cleaned.casefold() in _BROAD:
        raise InputError(f"class: expected a more specific word, got {word!r}. Write for example 'dog' or 'mug'.")
    return cleaned
