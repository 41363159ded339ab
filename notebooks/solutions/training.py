"""Solutions to notebook 06. A teacher may delete this folder: nothing needs it but its tests."""


def best_guess(joint):
    return joint.amax(1).sum().item()


def least_loss(joint):
    said = joint / joint.sum(1, keepdim=True)
    return -(joint * said.clamp(min=1e-30).log()).sum().item()


def whose_table():
    # A: video alone knows too much. D: audio does too. C: nobody knows when.
    return {"A": 3, "B": 1, "C": 4, "D": 2}


def my_label(factors):
    return (factors["pitch"] + factors["shape"]) % 4
