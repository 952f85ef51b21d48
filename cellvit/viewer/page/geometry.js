// @ts-check
/** Where things are: the map from the slide to the screen, and the tiles of the quadtree that a view needs. */

/** @typedef {import("./types.js").Point} Point */
/** @typedef {import("./types.js").Box} Box */

/**
 * Screen = [a x + c y + e, b x + d y + f], from level-0 pixels to CSS pixels of the picture.
 *
 * @typedef {{a: number, b: number, c: number, d: number, e: number, f: number}} Affine
 *
 * @typedef {{z: number, x: number, y: number}} TileAddress
 */

/**
 * Return where a point of the slide is on the screen.
 *
 * @param {Affine} map
 * @param {number} x
 * @param {number} y
 * @returns {Point}
 */
export function toScreen(map, x, y) {
  return [map.a * x + map.c * y + map.e, map.b * x + map.d * y + map.f];
}

/**
 * Return which point of the slide is at a place of the screen.
 *
 * @param {Affine} map
 * @param {number} x
 * @param {number} y
 * @returns {Point}
 */
export function toSlide(map, x, y) {
  const determinant = map.a * map.d - map.b * map.c;
  const [u, v] = [x - map.e, y - map.f];
  return [(map.d * u - map.c * v) / determinant, (map.a * v - map.b * u) / determinant];
}

/**
 * Return how many CSS pixels one level-0 pixel is wide.
 *
 * @param {Affine} map
 * @returns {number}
 */
export function scaleOf(map) {
  return Math.hypot(map.a, map.b);
}

/**
 * Return the box of the slide that holds everything on the screen.
 *
 * @param {Affine} map
 * @param {number} width  of the screen, CSS pixels
 * @param {number} height
 * @returns {Box}
 */
export function viewBox(map, width, height) {
  const corners = [[0, 0], [width, 0], [0, height], [width, height]].map(([x, y]) => toSlide(map, x, y));
  const xs = corners.map(([x]) => x);
  const ys = corners.map(([, y]) => y);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

/**
 * Return what two boxes share; its right may be left of its left if they share nothing.
 *
 * @param {Box} one
 * @param {Box} other
 * @returns {Box}
 */
export function intersection(one, other) {
  return [
    Math.max(one[0], other[0]),
    Math.max(one[1], other[1]),
    Math.min(one[2], other[2]),
    Math.min(one[3], other[3]),
  ];
}

/**
 * Return the area of a box, 0 if it is empty.
 *
 * @param {Box} box
 * @returns {number}
 */
export function areaOf(box) {
  return Math.max(0, box[2] - box[0]) * Math.max(0, box[3] - box[1]);
}

/**
 * Return the zoom of the quadtree whose tiles are about as wide on the screen as wanted.
 *
 * @param {number} scale  CSS pixels per level-0 pixel
 * @param {number} base  width of the tile of zoom 0
 * @param {number} maxZoom
 * @param {number} [wanted]  CSS pixels
 * @returns {number}
 */
export function zoomFor(scale, base, maxZoom, wanted = 512) {
  return Math.min(maxZoom, Math.max(0, Math.round(Math.log2((base * scale) / wanted))));
}

/**
 * Return the tiles that touch a box, those near its middle first.
 *
 * @param {Box} box
 * @param {number} base
 * @param {number} zoom
 * @returns {TileAddress[]}
 */
export function tilesIn(box, base, zoom) {
  const width = base / 2 ** zoom;
  const last = 2 ** zoom - 1;
  /** @param {number} value */
  const index = (value) => Math.min(last, Math.max(0, Math.floor(value / width)));
  const tiles = [];
  if (areaOf(box) > 0) {
    for (let y = index(box[1]); y <= index(box[3]); y++) {
      for (let x = index(box[0]); x <= index(box[2]); x++) tiles.push({ z: zoom, x, y });
    }
  }
  const [middleX, middleY] = [(box[0] + box[2]) / 2 / width - 0.5, (box[1] + box[3]) / 2 / width - 0.5];
  /** @param {TileAddress} tile */
  const distance = (tile) => Math.hypot(tile.x - middleX, tile.y - middleY);
  return tiles.sort((one, other) => distance(one) - distance(other));
}

/**
 * Return whether a point lies inside of a polygon (even-odd rule).
 *
 * @param {Point[]} polygon
 * @param {number} x
 * @param {number} y
 * @returns {boolean}
 */
export function inside(polygon, x, y) {
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [x1, y1] = polygon[i];
    const [x2, y2] = polygon[j];
    if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) odd = !odd;
  }
  return odd;
}

/**
 * Return a round length for the scale bar: 1, 2 or 5 times a power of ten, at most what is given.
 *
 * @param {number} most
 * @returns {number}
 */
export function roundLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return ([5, 2].find((step) => step * power <= most) ?? 1) * power;
}

/**
 * Return a path with fewer points: those nearer than a distance to the last kept one are left out.
 *
 * @param {Point[]} path
 * @param {number} distance
 * @returns {Point[]}
 */
export function thinned(path, distance) {
  /** @type {Point[]} */
  const kept = [];
  for (const point of path) {
    const last = kept[kept.length - 1];
    if (!last || Math.hypot(point[0] - last[0], point[1] - last[1]) >= distance) kept.push(point);
  }
  return kept;
}
