"""Ray casting of a room on the CPU: colour and exact depth."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

from .scene import Scene
from .splits import check_integer, check_real
from .textures import noise_bank

_TILE = 16  # pixels; primitives are culled once per tile


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _bilinear(textures, row, u, v, level):
    """Bilinear, wrapped lookup in one mip level at texel coordinates (u, v) of level 0; returns r, g, b in 0..255."""
    shift = 8 - level
    mask = (1 << shift) - 1
    start = 87381 - ((1 << (2 * shift + 2)) - 1) // 3  # texels of the larger levels: a geometric series
    scale = 1.0 / (1 << level)
    x, y = u * scale - 0.5, v * scale - 0.5
    fx, fy = math.floor(x), math.floor(y)
    x0, y0 = int(fx) & mask, int(fy) & mask
    x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
    ax, ay = x - fx, y - fy
    i, j = start + (y0 << shift), start + (y1 << shift)
    p, q, s, t = i + x0, i + x1, j + x0, j + x1
    w11 = ax * ay
    w01, w10 = ax - w11, ay - w11
    w00 = 1.0 - ax - w10
    r = w00 * textures[row, p, 0] + w01 * textures[row, q, 0] + w10 * textures[row, s, 0] + w11 * textures[row, t, 0]
    g = w00 * textures[row, p, 1] + w01 * textures[row, q, 1] + w10 * textures[row, s, 1] + w11 * textures[row, t, 1]
    b = w00 * textures[row, p, 2] + w01 * textures[row, q, 2] + w10 * textures[row, s, 2] + w11 * textures[row, t, 2]
    return r, g, b


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _sample(textures, row, u, v, lod):
    """Trilinear, wrapped texture lookup at texel coordinates (u, v) of level 0; returns r, g, b in 0..255."""
    level = int(lod)
    blend = lod - level
    # Close to a level, that level alone will do; the blend ramps over the middle 60 % between two levels.
    blend = min(max(1.6667 * (blend - 0.2), 0.0), 1.0)
    r, g, b = 0.0, 0.0, 0.0
    if blend < 1.0:
        r, g, b = _bilinear(textures, row, u, v, level)
    if blend > 0.0:
        r1, g1, b1 = _bilinear(textures, row, u, v, level + 1)
        r, g, b = r + blend * (r1 - r), g + blend * (g1 - g), b + blend * (b1 - b)
    return r, g, b


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _macro(macro, u, v):
    """Bilinear, wrapped lookup in the slow noise field; returns 0..1."""
    fx, fy = math.floor(u), math.floor(v)
    mask = macro.shape[0] - 1
    x0, y0 = int(fx) & mask, int(fy) & mask
    x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
    ax, ay = u - fx, v - fy
    return (macro[y0, x0] * (1 - ax) + macro[y0, x1] * ax) * (1 - ay) + (
        macro[y1, x0] * (1 - ax) + macro[y1, x1] * ax
    ) * ay


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _intersect(kind, rec, ox, oy, oz, dx, dy, dz, best):
    """Nearest ray parameter in (1e-6, best) at which the local ray enters the primitive, or best if there is none."""
    hx, hy, hz = rec[12], rec[13], rec[14]
    if kind == 0:
        near, far = -1e30, 1e30
        for axis in range(3):
            if axis == 0:
                o, d, h = ox, dx, hx
            elif axis == 1:
                o, d, h = oy, dy, hy
            else:
                o, d, h = oz, dz, hz
            if abs(d) < 1e-12:
                if abs(o) > h:
                    return best
                continue
            inverse = 1.0 / d
            t0, t1 = (-h - o) * inverse, (h - o) * inverse
            if t0 > t1:
                t0, t1 = t1, t0
            near, far = max(near, t0), min(far, t1)
            if near > far:
                return best
        return near if 1e-6 < near < best else best
    if kind == 1:
        a = dx * dx + dy * dy + dz * dz
        b = ox * dx + oy * dy + oz * dz
        disc = b * b - a * (ox * ox + oy * oy + oz * oz - hx * hx)
        if disc <= 0.0:
            return best
        t = (-b - math.sqrt(disc)) / a
        return t if 1e-6 < t < best else best
    a = dx * dx + dy * dy
    b = ox * dx + oy * dy
    c = ox * ox + oy * oy - hx * hx
    if a > 1e-14:
        disc = b * b - a * c
        if disc <= 0.0:
            return best
        t = (-b - math.sqrt(disc)) / a
        if abs(oz + t * dz) <= hz:
            return t if 1e-6 < t < best else best
    if abs(dz) > 1e-12:  # only the cap that faces the origin can be entered
        t = ((hz if oz > 0 else -hz) - oz) / dz
        x, y = ox + t * dx, oy + t * dy
        if abs(oz) > hz and x * x + y * y <= hx * hx:
            return t if 1e-6 < t < best else best
    return best


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _is_dark(px, py, pz, wx, wy, wz, far, itself, shapes, records):
    """Whether a primitive other than `itself` stands between a point and the light at distance `far`, in direction (wx, wy, wz)."""
    for i in range(records.shape[0]):
        if i == itself:
            continue
        rec = records[i]
        cx, cy, cz = rec[0] - px, rec[1] - py, rec[2] - pz
        b = (cx * wx + cy * wy + cz * wz) / far
        if b < -rec[15] or b > far + rec[15] or cx * cx + cy * cy + cz * cz - b * b > rec[15] * rec[15]:
            continue
        ox = -(rec[3] * cx + rec[4] * cy + rec[5] * cz)
        oy = -(rec[6] * cx + rec[7] * cy + rec[8] * cz)
        oz = -(rec[9] * cx + rec[10] * cy + rec[11] * cz)
        lx = rec[3] * wx + rec[4] * wy + rec[5] * wz
        ly = rec[6] * wx + rec[7] * wy + rec[8] * wz
        lz = rec[9] * wx + rec[10] * wy + rec[11] * wz
        if _intersect(shapes[i, 0], rec, ox, oy, oz, lx, ly, lz, 0.999) < 0.999:
            return True
    return False


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _shade(
    index, t, ox, oy, oz, dx, dy, dz, focal, room, shapes, records, room_shapes, room_records, lights, ambient,
    textures, macro, lamp, colour,
):  # fmt: skip
    """Add to colour (3,), linear light, what a ray sees at t on primitive `index`, or on room face -1 - index. lamp: radius of the
    lights, metres, for shadows; 0 for none."""
    px, py, pz = ox + t * dx, oy + t * dy, oz + t * dz
    if index < 0:
        face = -1 - index
        nx, ny, nz = 0.0, 0.0, 0.0
        if face < 2:
            nx = 1.0 if face == 0 else -1.0
            u, v = py, -pz
        elif face < 4:
            ny = 1.0 if face == 2 else -1.0
            u, v = px, -pz
        else:
            nz = 1.0 if face == 4 else -1.0
            u, v = px, py
        row = room_shapes[face]
        tr, tg, tb = room_records[face, 0], room_records[face, 1], room_records[face, 2]
        su = sv = room_records[face, 3]
        bu, bv = room_records[face, 4], room_records[face, 5]
        gloss = room_records[face, 6]
    else:
        rec = records[index]
        kind = shapes[index, 0]
        row = shapes[index, 1]
        fit = shapes[index, 2] == 1
        rx, ry, rz = px - rec[0], py - rec[1], pz - rec[2]
        lx = rec[3] * rx + rec[4] * ry + rec[5] * rz
        ly = rec[6] * rx + rec[7] * ry + rec[8] * rz
        lz = rec[9] * rx + rec[10] * ry + rec[11] * rz
        hx, hy, hz = rec[12], rec[13], rec[14]
        mx, my, mz = 0.0, 0.0, 0.0
        eu, ev = 1.0, 1.0
        if kind == 0:
            ex, ey, ez = abs(lx) - hx, abs(ly) - hy, abs(lz) - hz
            if ex > ey and ex > ez:
                mx = 1.0 if lx > 0 else -1.0
                u, v, eu, ev = ly * mx, -lz, hy, hz
            elif ey > ez:
                my = 1.0 if ly > 0 else -1.0
                u, v, eu, ev = -lx * my, -lz, hx, hz
            else:
                mz = 1.0 if lz > 0 else -1.0
                u, v, eu, ev = lx, -ly, hx, hy
        elif kind == 1:
            mx, my, mz = lx / hx, ly / hx, lz / hx
            u, v = math.atan2(ly, lx) * hx, -math.asin(min(max(mz, -1.0), 1.0)) * hx
            eu, ev = math.pi * hx, 0.5 * math.pi * hx
        elif abs(abs(lz) - hz) < 1e-6 and lx * lx + ly * ly < hx * hx * 0.999999:
            mz = 1.0 if lz > 0 else -1.0
            u, v, eu, ev = lx, -ly, hx, hx
        else:
            mx, my = lx / hx, ly / hx
            u, v = math.atan2(ly, lx) * hx, -lz
            eu, ev = math.pi * hx, hz
        nx = rec[3] * mx + rec[6] * my + rec[9] * mz
        ny = rec[4] * mx + rec[7] * my + rec[10] * mz
        nz = rec[5] * mx + rec[8] * my + rec[11] * mz
        tr, tg, tb = rec[16], rec[17], rec[18]
        su = sv = rec[19]
        bu, bv = rec[20], rec[21]
        if fit:
            su, sv = 128.0 / eu, 128.0 / ev
            bu, bv = 128.0, 128.0
        gloss = rec[22]
    length = math.sqrt(dx * dx + dy * dy + dz * dz)
    facing = abs(nx * dx + ny * dy + nz * dz) / length
    # The footprint of a pixel grows as 1/cos along one direction only; its geometric mean keeps grazing views crisp.
    footprint = t / focal * math.sqrt(su * sv / max(facing, 0.05))
    lod = 0.0 if footprint <= 1.0 else min(math.log2(footprint), 5.99)
    r, g, b = _sample(textures, row, u * su + bu, v * sv + bv, lod)
    slow = 0.70 + 0.6 * _macro(macro, u * 21.0 + bu, v * 21.0 + bv)  # breaks the repetition of wrapped textures
    r, g, b = r * r * tr * slow, g * g * tg * slow, b * b * tb * slow

    floor = pz / 0.18
    shade = 1.0 - 0.35 / (1.0 + floor * floor)
    if index < 0:
        for axis in range(2):
            if (axis == 0 and nx == 0.0) or (axis == 1 and ny == 0.0):
                edge = (room[axis] * 0.5 - abs(px if axis == 0 else py)) / 0.15
                shade *= 1.0 - 0.3 / (1.0 + edge * edge)
        if nz == 1.0:
            shade = shade / 0.65
        if nz == 0.0:
            edge = (room[2] - pz) / 0.15
            shade *= 1.0 - 0.3 / (1.0 + edge * edge)
    er, eg, eb = ambient[0], ambient[1], ambient[2]
    sky = 0.8 + 0.2 * nz
    er, eg, eb = er * sky, eg * sky, eb * sky
    shine = 0.0
    for k in range(lights.shape[0]):
        wx, wy, wz = lights[k, 0] - px, lights[k, 1] - py, lights[k, 2] - pz
        far = math.sqrt(wx * wx + wy * wy + wz * wz) + 1e-9
        cosine = (nx * wx + ny * wy + nz * wz) / far
        if cosine <= 0.0:
            continue
        if lamp > 0.0:  # one ray to some point of the light: where it is half hidden, pixels differ, as grain
            spread = math.sin(px * 12989.8 + py * 78233.0 + pz * 37719.0 + k) * 43758.5
            angle = 2.0 * math.pi * (spread - math.floor(spread))
            jx, jy = wx + lamp * math.cos(angle), wy + lamp * math.sin(angle)
            if _is_dark(px, py, pz, jx, jy, wz, math.sqrt(jx * jx + jy * jy + wz * wz), index, shapes, records):
                continue
        ratio = far / lights[k, 6]
        fall = cosine / (1.0 + ratio * ratio)
        er += lights[k, 3] * fall
        eg += lights[k, 4] * fall
        eb += lights[k, 5] * fall
        if gloss > 0.0:
            along = 2.0 * (nx * dx + ny * dy + nz * dz) / length
            mirror = (dx / length - along * nx) * wx + (dy / length - along * ny) * wy + (dz / length - along * nz) * wz
            mirror /= far
            if mirror > 0.0:
                m2 = mirror * mirror
                m8 = m2 * m2 * m2 * m2
                shine += gloss * m8 * m8 * m8 / (1.0 + ratio * ratio)
    norm = shade * 1.7 / 65025.0
    colour[0] += r * er * norm + shine
    colour[1] += g * eg * norm + shine
    colour[2] += b * eb * norm + shine


@njit(cache=True, nogil=True, error_model="numpy", forceinline=True)
def _trace(ox, oy, oz, dx, dy, dz, room, shapes, records, local_origin, near, tile, tile_count, length):
    """First hit of a ray from inside the room: parameter t and primitive index (or -1 - face)."""
    best, index = 1e30, -1
    if dx != 0.0:
        t = ((room[0] * 0.5 if dx > 0 else -room[0] * 0.5) - ox) / dx
        if t < best:
            best, index = t, -2 if dx > 0 else -1
    if dy != 0.0:
        t = ((room[1] * 0.5 if dy > 0 else -room[1] * 0.5) - oy) / dy
        if t < best:
            best, index = t, -4 if dy > 0 else -3
    if dz != 0.0:
        t = ((room[2] if dz > 0 else 0.0) - oz) / dz
        if t < best:
            best, index = t, -6 if dz > 0 else -5
    for k in range(tile_count):
        i = tile[k]
        if near[i] > best * length:  # sorted by distance: nothing further can be nearer
            break
        rec = records[i]
        cx, cy, cz = rec[0] - ox, rec[1] - oy, rec[2] - oz
        b = cx * dx + cy * dy + cz * dz
        if b * b < (cx * cx + cy * cy + cz * cz - rec[15] * rec[15]) * length * length:
            continue
        lx = rec[3] * dx + rec[4] * dy + rec[5] * dz
        ly = rec[6] * dx + rec[7] * dy + rec[8] * dz
        lz = rec[9] * dx + rec[10] * dy + rec[11] * dz
        t = _intersect(shapes[i, 0], rec, local_origin[i, 0], local_origin[i, 1], local_origin[i, 2], lx, ly, lz, best)
        if t < best:
            best, index = t, i
    return best, index


@njit(cache=True, parallel=False, nogil=True, error_model="numpy")
def _render_frame(
    pose, fx, fy, cx, cy, supersample, room, shapes, records, room_shapes, room_records, lights, ambient, textures,
    macro, lamp, with_colour, image, depth,
):  # fmt: skip
    """Ray-cast one frame into image (H, W, 3) uint8 and depth (H, W) float32."""
    height, width = depth.shape
    count = records.shape[0]
    ox, oy, oz = pose[0, 3], pose[1, 3], pose[2, 3]
    local_origin = np.empty((count, 3))
    near = np.empty(count)
    far = np.empty(count)
    for i in range(count):
        rx, ry, rz = ox - records[i, 0], oy - records[i, 1], oz - records[i, 2]
        for axis in range(3):
            k = 3 + 3 * axis
            local_origin[i, axis] = records[i, k] * rx + records[i, k + 1] * ry + records[i, k + 2] * rz
        far[i] = math.sqrt(rx * rx + ry * ry + rz * rz)
        near[i] = far[i] - records[i, 15]
    order = np.argsort(near, kind="mergesort")
    tile = np.empty(count, np.int64)
    colour = np.zeros(3)
    rays = 1 if supersample == 1 or not with_colour else 1 + supersample * supersample
    for top in range(0, height, _TILE):
        bottom = min(top + _TILE, height)
        for left in range(0, width, _TILE):
            right = min(left + _TILE, width)
            # Cone around the tile: axis through its centre, wide enough for its corners (a pixel of slack each side).
            ax, ay = ((left + right - 1) * 0.5 - cx) / fx, ((top + bottom - 1) * 0.5 - cy) / fy
            norm = math.sqrt(ax * ax + ay * ay + 1.0)
            cone = 1.0
            for corner in range(4):
                qx = ((left - 1 if corner % 2 == 0 else right) - cx) / fx
                qy = ((top - 1 if corner < 2 else bottom) - cy) / fy
                cone = min(cone, (ax * qx + ay * qy + 1.0) / (norm * math.sqrt(qx * qx + qy * qy + 1.0)))
            cone_angle = math.acos(min(cone, 1.0))
            vx = (pose[0, 0] * ax + pose[0, 1] * ay + pose[0, 2]) / norm
            vy = (pose[1, 0] * ax + pose[1, 1] * ay + pose[1, 2]) / norm
            vz = (pose[2, 0] * ax + pose[2, 1] * ay + pose[2, 2]) / norm
            tile_count = 0
            for k in range(count):
                i = order[k]
                if near[i] > 0.0:
                    along = vx * (records[i, 0] - ox) + vy * (records[i, 1] - oy) + vz * (records[i, 2] - oz)
                    limit = cone_angle + math.asin(min(records[i, 15] / far[i], 1.0))
                    if limit < math.pi and along < far[i] * math.cos(limit) - 1e-9:
                        continue
                tile[tile_count] = i
                tile_count += 1
            for row in range(top, bottom):
                for column in range(left, right):
                    colour[:] = 0.0
                    # One ray serves both when there is no supersampling; otherwise ray 0 gives depth, the rest colour.
                    for ray in range(rays):
                        qx, qy = column - cx, row - cy
                        if ray > 0:
                            qx += ((ray - 1) % supersample + 0.5) / supersample - 0.5
                            qy += ((ray - 1) // supersample + 0.5) / supersample - 0.5
                        qx, qy = qx / fx, qy / fy
                        # With camera z = 1 along the ray, the ray parameter is the z-depth itself.
                        dx = pose[0, 0] * qx + pose[0, 1] * qy + pose[0, 2]
                        dy = pose[1, 0] * qx + pose[1, 1] * qy + pose[1, 2]
                        dz = pose[2, 0] * qx + pose[2, 1] * qy + pose[2, 2]
                        length = math.sqrt(dx * dx + dy * dy + dz * dz)
                        t, index = _trace(
                            ox, oy, oz, dx, dy, dz, room, shapes, records, local_origin, near, tile, tile_count, length
                        )
                        if ray == 0:
                            depth[row, column] = t
                        if with_colour and (ray > 0 or rays == 1):
                            _shade(
                                index, t, ox, oy, oz, dx, dy, dz, fx * supersample, room, shapes, records, room_shapes,
                                room_records, lights, ambient, textures, macro, lamp, colour,
                            )  # fmt: skip
                    if not with_colour:
                        continue
                    for channel in range(3):
                        light = colour[channel] / (supersample * supersample)
                        light = light * (1.0 + 0.15 * light) / (1.0 + 0.6 * light)  # soft shoulder before clipping
                        image[row, column, channel] = np.uint8(min(math.sqrt(light) * 255.0 + 0.5, 255.0))


def cast_rays(
    scene: Scene,
    poses: np.ndarray,
    intrinsics: np.ndarray,
    width: int,
    height: int,
    threads: int,
    supersample: int,
    with_colour: bool,
    lamp: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """render() without its checks; depth only, and cheaper, where with_colour is false."""
    frames = len(poses)
    images = np.zeros((frames, height, width, 3) if with_colour else (frames, 1, 1, 3), np.uint8)
    depth = np.empty((frames, height, width), np.float32)
    fx, fy, cx, cy = (float(intrinsics[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    macro = noise_bank()[0][5]

    def one(k: int) -> None:
        _render_frame(
            poses[k], fx, fy, cx, cy, supersample, scene.room, scene.shapes, scene.records, scene.room_shapes,
            scene.room_records, scene.lights, scene.ambient, scene.textures, macro, lamp, with_colour, images[k], depth[k],
        )  # fmt: skip

    if threads == 1 or frames == 1:
        for k in range(frames):
            one(k)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(frames)))
    return images, depth


def render(
    scene: Scene,
    world_from_camera: np.ndarray,
    intrinsics: np.ndarray,
    width: int,
    height: int,
    threads: int = 1,
    supersample: int = 1,
    lamp: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Ray-cast frames of a scene.

    world_from_camera: (S, 4, 4), every centre inside the room. intrinsics: (3, 3) pixels, pixel centres at integers.
    threads: frames rendered at the same time. supersample: rays per pixel along each axis, for colour only. lamp: radius
    of the lights in metres, which then throw shadows, soft as they are wide; 0 for no shadows, as the frozen splits have it.
    Returns images (S, H, W, 3) uint8 RGB without sensor effects, and depth (S, H, W) float32 z-depth in metres through
    each pixel's centre. Raises ValueError on wrong shapes, sizes out of range, or a camera outside the room.
    """
    for name, value, low, high in (
        ("width", width, 8, 4096),
        ("height", height, 8, 4096),
        ("threads", threads, 1, 256),
        ("supersample", supersample, 1, 8),
    ):
        check_integer(name, value, low, high)
    check_real("lamp", lamp, 0.0, 10.0)
    poses = np.ascontiguousarray(world_from_camera, np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        raise ValueError(f"world_from_camera has shape {poses.shape}; it must be (S, 4, 4): stack one matrix per frame")
    intrinsics = np.asarray(intrinsics, np.float64)
    if intrinsics.shape != (3, 3):
        raise ValueError(f"intrinsics has shape {intrinsics.shape}; it must be (3, 3): pass scene.intrinsics(w, h)")
    centres = poses[:, :3, 3]
    inside = (
        (np.abs(centres[:, :2]) < scene.room[:2] / 2).all(1) & (centres[:, 2] > 0) & (centres[:, 2] < scene.room[2])
    )
    if not inside.all():
        k = int(np.argmin(inside))
        raise ValueError(
            f"world_from_camera[{k}] has its centre at {centres[k].tolist()}, outside the room of size "
            f"{scene.room.tolist()} centred on x = y = 0 with z from 0 up: move the camera inside"
        )
    return cast_rays(
        scene, poses, intrinsics, int(width), int(height), int(threads), int(supersample), True, float(lamp)
    )
