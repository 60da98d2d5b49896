"""The plots of kivi study."""

from matplotlib import pyplot

SIDES = {"key_before_rope": "keys before RoPE", "key": "keys", "value": "values"}


def plot(study, folder):
    """Writes every plot into the folder; gives the paths."""
    pyplot.rcParams.update({"figure.dpi": 150, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True})
    plots = {"maps": maps, "outliers": outliers, "sinks": sinks, "errors": errors, "axes": axes, "sizes": sizes,
             "presets": presets}
    paths = []
    for name, draw in plots.items():
        figure = draw(study)
        figure.suptitle(f"{study['model']['name']}: {figure.get_suptitle()}")
        paths.append(folder / f"study-{name}.png")
        figure.savefig(paths[-1], bbox_inches="tight")
        pyplot.close(figure)
    return paths


def maps(study):
    """Magnitudes, tokens x channels: a row of plots for each layer and head, the paper's picture from above."""
    rows = sorted({(m["layer"], m["head"]) for m in study["maps"]})
    figure, grid = pyplot.subplots(len(rows), len(SIDES), figsize=(11, 2.6 * len(rows)), squeeze=False,
                                   layout="constrained")
    for (layer, head), places in zip(rows, grid):
        for side, place in zip(SIDES, places):
            found = next(m for m in study["maps"] if (m["layer"], m["head"], m["side"]) == (layer, head, side))
            n_tokens = len(found["bins"]) * found["tokens_per_bin"]
            image = place.imshow(found["bins"], aspect="auto", interpolation="nearest",
                                 extent=(0, len(found["bins"][0]), n_tokens, 0))
            place.grid(False)
            place.set(title=f"layer {layer}, head {head}: {SIDES[side]}", xlabel="channel", ylabel="token")
            figure.colorbar(image, ax=place)
    figure.suptitle("magnitudes")
    return figure


def by_layer(place, study, value, **options):
    place.plot([layer["layer"] for layer in study["layers"]], [value(layer) for layer in study["layers"]], marker=".",
               **options)
    place.set(xlabel="layer")


def outliers(study):
    figure, place = pyplot.subplots(figsize=(8, 4))
    for side, name in SIDES.items():
        by_layer(place, study, lambda layer: layer["sides"][side]["outlier_ratio"], label=name)
    place.set(ylabel="largest channel / median", ylim=(0, None))
    place.legend()
    figure.suptitle("outlier channels")
    return figure


def sinks(study):
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    for i, (n, _) in enumerate(study["layers"][0]["attention"]["mass_of_first"]):
        by_layer(left, study, lambda layer: layer["attention"]["mass_of_first"][i][1], label=f"first {n}")
    left.set(ylabel="part of attention", ylim=(0, None))
    for side in ("key", "value"):
        by_layer(right, study, lambda layer: layer["sides"][side]["first_token"], label=SIDES[side])
    right.set(ylabel="first token's norm / median", ylim=(0, None))
    left.legend()
    right.legend()
    figure.suptitle("the first tokens")
    return figure


def group_name(row):
    return f"{'K' if row['side'] == 'key' else 'V'} per {row['axis']}"


def errors(study):
    rows = study["errors"]["rows"]
    widths = sorted({row["bits"] for row in rows})
    figure, places = pyplot.subplots(1, len(widths), figsize=(5 * len(widths), 4), sharey=True, squeeze=False)
    for bits, place in zip(widths, places[0]):
        for row in rows:
            if row["bits"] == bits:
                place.plot([output for _, _, output in row["layers"]], marker=".", label=group_name(row))
        place.set(title=f"{bits} bits", xlabel="layer", yscale="log")
    places[0][0].set(ylabel="relative error of attention's output")
    places[0][-1].legend()
    figure.suptitle("errors, all tokens rounded")
    return figure


def bars(place, settings, labels, chosen):
    """KL to 16 bits with its interval, one bar for each setting."""
    means = [s["kl"]["mean"] for s in settings]
    low = [mean - max(s["kl"]["low"], 0) for s, mean in zip(settings, means)]
    high = [s["kl"]["high"] - mean for s, mean in zip(settings, means)]
    colours = ["tab:green" if mark else "tab:blue" for mark in chosen]
    place.barh(labels, means, xerr=(low, high), color=colours, alpha=0.8)
    place.invert_yaxis()
    place.set(xlabel="KL to 16 bits, nats per token", xscale="log")
    place.set_xlim(min(mean for mean in means if mean > 0) / 2)


def settings_of(study):
    return {s["name"]: s for s in study["quality"]["settings"]}


def axes(study):
    rows = study["quality"]["axes"]
    labels = [f"K per {r['keys']}, V per {r['values']}; {r['bits']} bits{', window' if r['window'] else ''}" for r in rows]
    figure, place = pyplot.subplots(figsize=(8, 0.5 * len(rows) + 1))
    bars(place, [settings_of(study)[r["setting"]] for r in rows], labels,
         [(r["keys"], r["values"]) == ("channel", "token") for r in rows])
    figure.suptitle("axes (green: the packed format's)")
    return figure


def sizes(study):
    figure, places = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
    for place, (table, label) in zip(places, {"group_size": "group size G, R = 128", "residual": "window R, G = 32"}.items()):
        rows = study["quality"][table]
        kl = [settings_of(study)[r["setting"]]["kl"] for r in rows]
        place.errorbar([str(r["value"]) for r in rows], [k["mean"] for k in kl],
                       ([k["mean"] - max(k["low"], 0) for k in kl], [k["high"] - k["mean"] for k in kl]), marker="o", capsize=3)
        place.set(xlabel=label, ylim=(0, None))
    places[0].set(ylabel="KL to 16 bits, nats per token")
    figure.suptitle("groups and windows at 2 bits")
    return figure


def presets(study):
    """What a cache costs and what it loses."""
    figure, place = pyplot.subplots(figsize=(8, 4))
    for candidate in study["recommendation"]["candidates"]:
        kl = settings_of(study)[candidate["setting"]]["kl"]
        if kl["mean"] <= 0:
            continue  # f16
        place.errorbar(candidate["bytes_per_token"], kl["mean"],
                       ([kl["mean"] - max(kl["low"], kl["mean"] / 1000)], [kl["high"] - kl["mean"]]), marker="o", capsize=3,
                       color="tab:green" if candidate["setting"] == study["recommendation"]["setting"] else "tab:blue")
        place.annotate(candidate["setting"], (candidate["bytes_per_token"], kl["mean"]), xytext=(6, 4),
                       textcoords="offset points")
    place.set(xlabel="bytes per token", ylabel="KL to 16 bits, nats per token", yscale="log")
    figure.suptitle("presets (green: recommended)")
    return figure
