"""The overload curves as SVG: answers in time over the own capacity, by offered load over the own capacity."""

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 190, 40, 50
Y_MOST = 1.1
COLOURS = {"weir": "#1b6ca8", "triton": "#4d9221", "mosec": "#c04a1d", "mlserver": "#7b4ea3", "ray": "#8a6d00"}
DASHES = {"native": "", "http": "7 3", "grpc": "2 3"}


def overload(results: dict, scenario: str, title: str) -> str | None:
    """Nothing where the scenario was measured of nobody."""
    curves = []
    for server, kept in results["servers"].items():
        for door, found in kept["doors"].items():
            of_door = found.get(scenario, {})
            if "runs" in of_door:
                own = of_door["own_per_s"]
                points = [(float(times), run["goodput_per_s"] / own) for times, run in of_door["runs"].items()]
                curves.append((server, door, points))
    if not curves:
        return None
    x_most = max(times for _, _, points in curves for times, _ in points)
    across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(times: float, share: float) -> tuple[float, float]:
        return LEFT + across * times / x_most, TOP + up * (1 - min(share, Y_MOST) / Y_MOST)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{title}</text>',
        f'<text x="{LEFT + across / 2}" y="{HEIGHT - 12}" text-anchor="middle">offered, over the own capacity</text>',
    ]
    for tenth in range(0, 11, 2):
        (left, y), (right, _) = at(0, tenth / 10), at(x_most, 0)
        parts.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{tenth / 10:g}</text>')
    for times, _ in max((points for _, _, points in curves), key=len):
        x, y = at(times, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{times:g}×</text>')
    for i, (server, door, points) in enumerate(curves):
        stroke = f'stroke="{COLOURS[server]}" stroke-dasharray="{DASHES[door]}" stroke-width="2" fill="none"'
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
        parts.append(f'<polyline points="{line}" {stroke}/>')
        x, y = WIDTH - RIGHT + 20, TOP + 12 + 20 * i
        parts.append(f'<path d="M{x} {y}h30" {stroke}/><text x="{x + 38}" y="{y + 4}">{server}, {door}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
