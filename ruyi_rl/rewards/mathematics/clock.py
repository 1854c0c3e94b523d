"""Times of the day: `9:00 PM` is `21:00`."""

import re

_TIME = re.compile(r"(\d{1,2})(?::(\d{2}))?(?:\s?([AP]M))?")


def same_time(gold: str, answer: str) -> bool | None:
    """The verdict for two times of which one names its half of the day; None elsewhere. A time without AM or PM is read
    on the 24-hour clock.

    Args:
        gold, answer: as `notation.tidy` leaves them.
    """
    times = _TIME.fullmatch(gold.strip()), _TIME.fullmatch(answer.strip())
    if not all(times) or not (times[0][3] or times[1][3]) or not all(time[2] or time[3] for time in times):
        return None
    minutes = [_minutes(*time.groups()) for time in times]
    return None not in minutes and minutes[0] == minutes[1]


def _minutes(hours: str, minutes: str | None, half: str | None) -> int | None:
    hour, minute = int(hours), int(minutes or 0)
    if minute > 59 or hour > 23 or (half and not 1 <= hour <= 12):
        return None
    return (hour % 12 + 12 * (half == "PM") if half else hour) * 60 + minute
