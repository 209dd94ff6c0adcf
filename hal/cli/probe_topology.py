"""``hal-probe tree`` and ``hal-probe topology``: places, distances, pairs, the picture."""

from __future__ import annotations

from hal.cli.probe import say, say_lines, say_report, timed, warn
from hal.cli.probe_look import Look
from hal.cli.probe_options import Options
from hal.cli.probe_reports import LinkRecord, Nearest, Place, TopologyReport
from hal.cli.render.text import Style, clean, cut, terminal_columns
from hal.model.device import Device
from hal.model.kind import Kind
from hal.topology.distance import LEGEND, MATRIX_KINDS, Matrix, distance, matrices, nearest
from hal.topology.graph import Topology, Vertex, build


def show_tree(options: Options) -> int:
    """Show the tree; with filters, the chosen devices where they sit."""
    seen = timed(options)
    topology = build(_with_bridges(seen))
    if options.format == "table":
        from hal.cli.render.tree import tree

        say_lines(tree(topology, terminal_columns(), Style(options.color), options.all))
        warn(seen)
    else:
        say_report(_report(seen, topology, ()), options)
    return seen.exit_code


def show_topology(options: Options) -> int:
    """Show the tree and the distance matrix, or only the matrix, or draw the picture."""
    seen = timed(options)
    found = matrices(seen.devices, _kinds(options))
    if options.svg is not None:
        _draw(seen, options.svg)
    if options.format != "table":
        if options.svg != "-":
            say_report(_report(seen, build(_with_bridges(seen)), found), options)
        return seen.exit_code
    if options.svg is None:
        columns, style = terminal_columns(), Style(options.color)
        lines: list[str] = []
        if not options.matrix:
            from hal.cli.render.tree import tree

            lines += tree(build(_with_bridges(seen)), columns, style, options.all)
        lines += _matrix_lines(found, columns, style)
        lines += _pair_lines(seen.devices, columns, style)
        say_lines(lines[1:] if lines and not lines[0] else lines)
    warn(seen)
    return seen.exit_code


def _kinds(options: Options) -> tuple[Kind, ...]:
    if options.kinds is None:
        return MATRIX_KINDS
    return tuple(sorted(options.kinds, key=list(Kind).index))


def _with_bridges(seen: Look) -> tuple[Device, ...]:
    """Return the chosen devices and the bridges above them: filters choose what is shown, not how it is wired."""
    ids = {device.id for device in seen.devices}
    above = {(device.location.node, address) for device in seen.devices for address in device.location.pci_path}
    return tuple(
        device
        for device in seen.survey.inventory
        if device.id in ids or (device.location.node, device.location.pci_address or "") in above
    )


def _matrix_lines(found: tuple[Matrix, ...], columns: int | None, style: Style) -> list[str]:
    from hal.cli.render.matrix import legend, matrix

    lines: list[str] = []
    for one in found:
        if len(one.devices) < 2:
            continue
        title = f"distances on {clean(one.node)}"
        lines += ["", style.bold(title if columns is None else cut(title, columns)), *matrix(one, columns, style)]
    return [*lines, "", *legend(found, columns)] if lines else ["", "fewer than two GPUs, NICs, NVMe or PMem regions"]


def _pairs(devices: tuple[Device, ...]) -> tuple[Nearest, ...]:
    pairs: list[Nearest] = []
    nics: dict[str, list[Device]] = {}
    for device in devices:
        if device.kind is Kind.RNIC:
            nics.setdefault(device.location.node, []).append(device)
    for device in devices:
        near = nearest(device, nics.get(device.location.node, ())) if device.kind is Kind.GPU else ()
        if near:
            ids = tuple(nic.id for nic in near)
            pairs.append(Nearest(device=device.id, nics=ids, distance=distance(device, near[0]).word))
    return tuple(pairs)


def _pair_lines(devices: tuple[Device, ...], columns: int | None, style: Style) -> list[str]:
    names = {device.id: clean(device.name) for device in devices}
    several = len({device.location.node for device in devices}) > 1
    lines: list[str] = []
    for pair in _pairs(devices):
        node = next(device.location.node for device in devices if device.id == pair.device)
        name = f"{clean(node)}/{names[pair.device]}" if several else names[pair.device]
        line = f"  {name}  {', '.join(names[nic] for nic in pair.nics)}  ({pair.distance})"
        lines.append(line if columns is None else cut(line, columns))
    return ["", style.bold("nearest RDMA NICs"), *lines] if lines else []


def _report(seen: Look, topology: Topology, found: tuple[Matrix, ...]) -> TopologyReport:
    return TopologyReport(
        taken_at=seen.taken_at,
        exit_code=seen.exit_code,
        problems=seen.survey.problems,
        tree=_place(topology, topology.root),
        links=tuple(
            LinkRecord(
                device=edge.device,
                peer=edge.peer,
                type=edge.link.type,
                lanes=edge.link.lanes,
                state=edge.link.state,
                bandwidth_bytes_per_second=edge.link.bandwidth_bytes_per_second,
            )
            for edge in topology.edges
        ),
        matrices=found,
        nearest=_pairs(seen.devices),
        legend=dict(LEGEND),
    )


def _place(topology: Topology, vertex: Vertex) -> Place:
    return Place(
        id=vertex.id,
        level=vertex.level.value,
        label=vertex.label,
        device=vertex.device.id if vertex.device is not None else None,
        contains=tuple(_place(topology, child) for child in topology.children(vertex)),
    )


def _draw(seen: Look, file: str) -> None:
    from hal.topology.svg import picture

    drawn = picture(_with_bridges(seen))
    if file == "-":
        say(drawn)
        return
    from hal.errors import UsageError

    try:
        with open(file, "w", encoding="utf-8", errors="backslashreplace") as target:
            target.write(drawn)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", during="--svg", hint="another file") from error
