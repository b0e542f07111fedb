"""Texts of guards: what is wrong, and what the operator has to do, in Korean and in English."""

from typing import Any, Final

from gateway.model.records import Verdict

_TEXTS: Final[dict[str, tuple[str, str]]] = {
    "no_stable_weight": (
        "안정된 저울 데이터(ST)가 없습니다",
        "The scale has not shown a stable weight yet. Put the cylinder on it, and wait until the weight is stable.",
    ),
    "only_net": (
        "저울이 순중량(NT)만 보내고 있습니다. 저울의 용기 값(TARE)을 해제하세요",
        "The scale sends net weights only. Clear its tare.",
    ),
    "stale_weight": (
        "저울 데이터가 오래되었습니다. 저울의 전원과 통신 케이블을 확인하세요",
        "The weight is too old. Check the power and the cable of the scale.",
    ),
    "negative_weight": (
        "중량이 0보다 작습니다({weight} kg). 저울을 비우고 영점(RE-ZERO)을 맞춘 뒤 다시 올리세요",
        "The weight is below zero ({weight} kg). Empty the scale, set it to zero, and put the cylinder on it again.",
    ),
    "weight_out_of_range": (
        "중량 {weight} kg은 이 저울에서 기록할 수 있는 범위({range})를 벗어납니다. 올려놓은 물건을 확인하세요",
        "{weight} kg is outside the range of this scale ({range}). Check what stands on it.",
    ),
    "wrong_unit": (
        "저울의 단위가 {unit}입니다. 저울의 단위를 {expected}(으)로 바꾸세요",
        "The unit of the scale is {unit}. Set it to {expected}.",
    ),
    "unstable": (
        "저울이 아직 안정되지 않았습니다. 중량이 안정될 때까지 기다리세요",
        "The scale is not stable. Wait until the weight is stable.",
    ),
    "disconnected": (
        "저울의 연결이 끊어졌습니다. 통신 케이블과 변환기를 확인하세요",
        "The scale is not connected. Check its cable and its converter.",
    ),
    "not_rearmed": (
        "마지막 기록 뒤에 저울이 비워지지 않았습니다. 용기를 내려 0을 확인한 뒤 다음 용기를 올리세요",
        "The scale has not been empty since the last commit. Take the cylinder off, wait for zero, and put on another.",
    ),
    "reading_changed": (
        "화면의 중량과 저울의 현재 중량이 다릅니다. 현재 중량을 확인하고 다시 누르세요",
        "The weight has changed since it was shown. Check the weight, and press again.",
    ),
    "duplicate": (
        "같은 용기가 방금 기록되었습니다(기록 번호 {id}). 다시 기록할 필요가 없습니다",
        "This cylinder has just been committed (id {id}). There is nothing more to do.",
    ),
    "out_of_control": (
        "이 저울은 점검에서 허용 오차를 벗어났습니다. 기준 분동으로 다시 점검하세요",
        "This scale was out of its limits at the last check. Check it again with a reference weight.",
    ),
    "override_not_allowed": (
        "이 저울에서는 확인을 건너뛸 수 없습니다(override: false)",
        "This scale does not take overrides (override: false).",
    ),
}

#: Error codes of answers, where they differ from the name of the text.
_CODES: Final = {"wrong_unit": "weight_out_of_range", "disconnected": "unstable"}


def refusal(name: str, **values: Any) -> Verdict:
    """Return the verdict with the text of a name.

    :param values: values that the text shows.
    """
    korean, english = _TEXTS[name]
    return Verdict(_CODES.get(name, name), korean.format(**values), english.format(**values))
