"""How far apart the losses of two right machines may be: judged by the rounding of the model itself."""

from collections.abc import Callable

import numpy as np

from streamlm.experiment.follow import Refuted

# Nats; closer losses are the same. Of float32, other sizes of block moved losses by 3e-5 and another
# implementation by 1e-4.
FLOOR = 1e-4
# Times the rounding of the model, which is what a wider type moves its losses by, of one size on all right
# machines: for the largest of the differences, and for their root mean square, which varies less.
LARGEST, USUAL = 8, 4
MANY = 100  # losses from which their mean and root mean square are judged too


def check_rounding(
    queries: np.ndarray,
    found: np.ndarray,
    rescored: np.ndarray,
    in_wider_type: Callable[[], np.ndarray | None],
) -> str:
    """Return in words how far the losses in a record are from those that were scored again.

    Args:
        queries: (T,) for the message.
        found: (T,) nats, in the record.
        rescored: (T,) nats.
        in_wider_type: scores the same in a wider type, None if there is none; called where differences are
            larger than `FLOOR`.

    Raises:
        Refuted: if rounding does not explain them.
    """
    difference = found.astype(np.float64) - rescored
    largest = float(np.abs(difference).max())
    if largest <= FLOOR:
        return f"at most {largest:.1e} nats apart"
    wide = in_wider_type()
    rounding = np.zeros(len(found)) if wide is None else rescored.astype(np.float64) - wide
    tolerance = FLOOR + LARGEST * float(np.abs(rounding).max())
    wrong = np.flatnonzero(~(np.abs(difference) <= tolerance))  # NaN is wrong
    if len(wrong):
        i = wrong[0]
        raise Refuted(
            f"the loss of token {queries[i] + 1} is {found[i]:.6f} nats in the record and {rescored[i]:.6f} "
            f"rescored ({len(wrong)} of {len(found)} differ by more than {tolerance:.1e}, which rounding "
            "explains); a number was changed, or it was made with another model"
        )
    if len(found) >= MANY:
        _check_many(difference, rounding, found if wide is None else found - wide)
    return f"at most {largest:.1e} nats apart, where the rounding of this model explains {tolerance:.1e}"


def _check_many(difference: np.ndarray, rounding: np.ndarray, to_wide: np.ndarray) -> None:
    """Judge all differences together: to what was rescored, of that to a wider type, of the record to it."""
    usual, own = _root_mean_square(difference), _root_mean_square(rounding)
    mean, bias = abs(float(difference.mean())), abs(float(rounding.mean()))
    if usual > FLOOR + USUAL * own:
        raise Refuted(
            f"its {len(difference)} losses are {usual:.1e} nats from those rescored in the root mean square, "
            f"and rounding explains {FLOOR + USUAL * own:.1e}"
        )
    limit = FLOOR + USUAL * bias + LARGEST * own / len(difference) ** 0.5
    if mean > limit:
        raise Refuted(
            f"the mean of {len(difference)} losses is {mean:.1e} nats from that rescored, and rounding "
            f"explains {limit:.1e}"
        )
    if own > 10 * FLOOR and USUAL * _root_mean_square(to_wide) < own:
        raise Refuted(
            f"its losses are {_root_mean_square(to_wide):.1e} nats from those of a wider type, and its types "
            f"round by {own:.1e}: it was made with others than it says"
        )


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
