"""From samples to what is printed."""

import random
from statistics import median, quantiles


def tenth(samples):
    """The 10th percentile: what the machine does when nothing else disturbs it."""
    return quantiles(samples, n=10, method="inclusive")[0]


def rounds(count, names, sample):
    """Samples of all, in turns whose order is shuffled each time."""
    taken = {name: [] for name in names}
    for _ in range(count):
        order = list(names)
        random.shuffle(order)
        for name in order:
            taken[name].append(sample(name))
    return taken


class Compared:
    """One variant's samples against those of the first, taken in the same rounds."""

    def __init__(self, samples, base):
        self.low = tenth(samples) / tenth(base)
        differences = [one - other for one, other in zip(samples, base)]
        low, middle, high = quantiles(differences, n=4, method="inclusive")
        middle_base = median(base)
        self.paired = 1 + middle / middle_base
        self.spread = (1 + low / middle_base, 1 + high / middle_base)


class Processes:
    """A variant in several processes against another in several, sampled in the same rounds.

    `middle` is the median of the differences that two processes of the two had in one round, and `interval` is where it lies
    in 95 % of the draws of other processes and rounds from those that were taken.
    """

    DRAWS = 1000

    def __init__(self, mine, base):
        self.mine, self.base = mine, base
        rounds = range(len(base[0]))
        self.middle = self.ratio(range(len(mine)), rounds)
        draws = random.Random(1)
        drawn = sorted(
            self.ratio(draws.choices(range(len(mine)), k=len(mine)), draws.choices(rounds, k=len(rounds)))
            for _ in range(self.DRAWS)
        )
        self.interval = (drawn[self.DRAWS // 40], drawn[-self.DRAWS // 40])

    def ratio(self, processes, rounds):
        middles = {at: median(one[at] for one in self.base) for at in set(rounds)}
        differences = [self.mine[process][at] - middles[at] for process in processes for at in rounds]
        return 1 + median(differences) / median(middles[at] for at in rounds)


def table(head, rows):
    """Markdown; the first column to the left, the others to the right."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def ratio(value):
    return f"{value:.2f}"


def spread(pair):
    return f"{pair[0]:.2f}–{pair[1]:.2f}"
