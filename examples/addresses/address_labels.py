"""What the labels of usaddress become: one flat JSON object of at most 14 strings, its keys in a fixed order.

The 29 labels that occur are merged so that each field answers one question a shipping form asks. Text stays as it was
written; only commas and brackets at the ends of a value go. Words labeled NotAddress or CornerOf ("corner of") are in
no field.
"""

import json
from collections.abc import Iterable, Sequence

FIELDS: dict[str, tuple[str, ...]] = {
    "recipient": ("Recipient",),
    "building": ("BuildingName", "LandmarkName"),
    "house_number": ("AddressNumberPrefix", "AddressNumber", "AddressNumberSuffix"),
    "direction_before": ("StreetNamePreDirectional",),
    "street": ("StreetNamePreModifier", "StreetNamePreType", "StreetName"),
    "street_type": ("StreetNamePostType", "StreetNamePostModifier"),
    "direction_after": ("StreetNamePostDirectional",),
    "cross_street": (),
    "unit": ("SubaddressType", "SubaddressIdentifier", "OccupancyType", "OccupancyIdentifier"),
    "po_box": ("USPSBoxGroupType", "USPSBoxGroupID", "USPSBoxType", "USPSBoxID"),
    "city": ("PlaceName",),
    "state": ("StateName",),
    "zip_code": ("ZipCode", "ZipPlus4"),
    "country": ("CountryName",),
}
"""Field -> the labels whose words it holds, in the order of the text; `cross_street` is all of the second street."""

LEFT_OUT = ("CornerOf", "NotAddress", "IntersectionSeparator")

_FIELD_OF = {label: field for field, labels in FIELDS.items() for label in labels}
_ENDS = " ,;()\n"


def to_object(tokens: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The fields of an address from its words and their labels.

    Raises:
        ValueError: a label is none of those that usaddress has.
    """
    words: dict[str, list[str]] = {}
    second_street = False
    for token, label in tokens:
        second_street = second_street or label == "IntersectionSeparator"
        if label in LEFT_OUT:
            continue
        if label not in _FIELD_OF:
            raise ValueError(f"unknown label {label!r}; known: {', '.join([*_FIELD_OF, *LEFT_OUT])}")
        field = "cross_street" if second_street and label.startswith("StreetName") else _FIELD_OF[label]
        words.setdefault(field, []).extend(token.split())
    values = {field: " ".join(words[field]).strip(_ENDS) for field in FIELDS if field in words}
    return {field: value for field, value in values.items() if value}


def to_json(tokens: Iterable[tuple[str, str]]) -> str:
    """The reply that a row asks for: `to_object` as compact JSON, keys in the order of `FIELDS`."""
    return json.dumps(to_object(tokens), ensure_ascii=False, separators=(",", ":"))


def user_text(messages: Sequence[dict[str, str]]) -> str:
    """The address in a prompt: its last user turn."""
    return next(message["content"] for message in reversed(messages) if message["role"] == "user")
