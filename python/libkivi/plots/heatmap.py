"""The heat map of `kivi eval passkey` and `needle`: right answers by context and depth, one map for each KV cache."""


def grid(result):
    """Of a KV cache's result: contexts and depths in order, and what part is right, by depth and context; None where no
    item is."""
    cells = {(cell["context"], cell["depth"]): cell["right"] / cell["n"] for cell in result["cells"]}
    contexts = sorted({context for context, _ in cells})
    depths = sorted({depth for _, depth in cells})
    return contexts, depths, [[cells.get((context, depth)) for context in contexts] for depth in depths]


def draw(report):
    """The figure."""
    from matplotlib import pyplot

    results = report["results"]
    contexts, depths, _ = grid(results[0])
    figure, axes = pyplot.subplots(1, len(results), squeeze=False, sharey=True, layout="constrained",
                                   figsize=(1.4 + len(results) * (1.0 + 0.6 * len(contexts)), 1.6 + 0.35 * len(depths)))
    for axis, result in zip(axes[0], results):
        parts = grid(result)[2]
        image = axis.imshow([[float("nan") if part is None else part for part in row] for row in parts], vmin=0, vmax=1,
                            cmap="RdYlGn", aspect="auto")
        for y, row in enumerate(parts):
            for x, part in enumerate(row):
                if part is not None:
                    axis.text(x, y, f"{100 * part:.0f}", ha="center", va="center", fontsize=8)
        axis.set_title(f"{result['kv']}: {100 * result['accuracy']:.0f} %", fontsize=10)
        axis.set_xticks(range(len(contexts)), [str(context) for context in contexts], rotation=45, ha="right")
        axis.set_yticks(range(len(depths)), [f"{100 * depth:.0f} %" for depth in depths])
        axis.set_xlabel("context, tokens")
    axes[0][0].set_ylabel("depth")
    figure.colorbar(image, ax=axes[0].tolist(), label="found, part of items")
    figure.suptitle(f"{report['task']}: {report['model']}", fontsize=11)
    return figure


def plot(report, folder):
    """Writes the plot into the folder; gives its path, in a list."""
    path = folder / f"{report['task']}.png"
    draw(report).savefig(path, dpi=150)
    return [path]
