// @ts-check
/** Reading the server's tiles of nuclei: little-endian numbers, one array after the other. */

/**
 * @typedef {object} PointTile
 * @property {number} count
 * @property {Uint32Array} row
 * @property {Float32Array} x  from the tile's corner, level-0 pixels
 * @property {Float32Array} y
 * @property {Float32Array | null} value  NaN where missing
 * @property {Uint8Array} type
 *
 * @typedef {object} OutlineTile
 * @property {number} count
 * @property {Uint32Array} row
 * @property {Uint32Array} start  first vertex of each outline, and the number of vertices
 * @property {Float32Array} xy  x and y of every vertex, from the tile's corner
 * @property {Float32Array | null} value
 * @property {Uint8Array} type
 *
 * @typedef {object} DensityTile
 * @property {number} classes
 * @property {number} grid
 * @property {Uint32Array} count  class by class, row by row
 */

/** Takes arrays off a buffer one after the other. */
class Reader {
  /** @param {ArrayBuffer} buffer */
  constructor(buffer) {
    this.buffer = buffer;
    this.offset = 0;
  }

  /**
   * @param {number} bytes
   * @returns {number}
   */
  skip(bytes) {
    const from = this.offset;
    if (from + bytes > this.buffer.byteLength) {
      throw new RangeError(`a tile of ${this.buffer.byteLength} bytes ends before byte ${from + bytes}`);
    }
    this.offset += bytes;
    return from;
  }

  number() {
    return new DataView(this.buffer).getUint32(this.skip(4), true);
  }

  /** @param {number} length */
  integers(length) {
    return new Uint32Array(this.buffer, this.skip(4 * length), length);
  }

  /** @param {number} length */
  floats(length) {
    return new Float32Array(this.buffer, this.skip(4 * length), length);
  }

  /** @param {number} length */
  bytes(length) {
    return new Uint8Array(this.buffer, this.skip(length), length);
  }
}

/**
 * Return a tile of points.
 *
 * @param {ArrayBuffer} buffer
 * @param {boolean} valued  whether a column was asked for
 * @returns {PointTile}
 */
export function readPoints(buffer, valued) {
  const from = new Reader(buffer);
  const count = from.number();
  return {
    count,
    row: from.integers(count),
    x: from.floats(count),
    y: from.floats(count),
    value: valued ? from.floats(count) : null,
    type: from.bytes(count),
  };
}

/**
 * Return a tile of outlines.
 *
 * @param {ArrayBuffer} buffer
 * @param {boolean} valued  whether a column was asked for
 * @returns {OutlineTile}
 */
export function readOutlines(buffer, valued) {
  const from = new Reader(buffer);
  const count = from.number();
  const vertices = from.number();
  return {
    count,
    row: from.integers(count),
    start: from.integers(count + 1),
    xy: from.floats(2 * vertices),
    value: valued ? from.floats(count) : null,
    type: from.bytes(count),
  };
}

/**
 * Return a tile of counts.
 *
 * @param {ArrayBuffer} buffer
 * @returns {DensityTile}
 */
export function readDensity(buffer) {
  const from = new Reader(buffer);
  const classes = from.number();
  const grid = from.number();
  return { classes, grid, count: from.integers(classes * grid * grid) };
}

/**
 * Return the mean vertex of every outline, x and y: where marks and picking take the nucleus to be.
 *
 * @param {OutlineTile} tile
 * @returns {{x: Float32Array, y: Float32Array}}
 */
export function outlineCenters(tile) {
  const x = new Float32Array(tile.count);
  const y = new Float32Array(tile.count);
  for (let i = 0; i < tile.count; i++) {
    const [from, to] = [tile.start[i], tile.start[i + 1]];
    for (let v = from; v < to; v++) {
      x[i] += tile.xy[2 * v] / (to - from);
      y[i] += tile.xy[2 * v + 1] / (to - from);
    }
  }
  return { x, y };
}

/**
 * Outlines as a mesh: every vertex twice, to be moved outwards and inwards along its miter, so that lines have a width.
 *
 * @typedef {object} OutlineMesh
 * @property {Float32Array} vertices  x, y, miter x, miter y; the outer one first, then the inner one
 * @property {Uint32Array} owner  which nucleus each of them belongs to
 * @property {Uint32Array} start  first vertex of each nucleus (not twice), and their number
 */

/** Sharp corners stick out at most so many half widths. */
const LONGEST_MITER = 2;

/**
 * Return outlines as a mesh.
 *
 * @param {{count: number, start: Uint32Array, xy: Float32Array}} tile
 * @param {number} step  vertices nearer than this to the last one are left out
 * @returns {OutlineMesh}
 */
export function outlineMesh(tile, step) {
  const total = tile.xy.length / 2;
  const kept = new Float32Array(2 * total);
  const start = new Uint32Array(tile.count + 1);
  let at = 0;
  for (let i = 0; i < tile.count; i++) {
    at = keepVertices(tile.xy, tile.start[i], tile.start[i + 1], step, kept, at);
    start[i + 1] = at;
  }
  const vertices = new Float32Array(8 * at);
  const owner = new Uint32Array(2 * at);
  for (let i = 0; i < tile.count; i++) {
    owner.fill(i, 2 * start[i], 2 * start[i + 1]);
    addMiters(kept, start[i], start[i + 1], vertices);
  }
  return { vertices, owner, start };
}

/**
 * Keep the vertices of an outline that are a step apart, at least three, and return where the next ones go.
 *
 * @param {Float32Array} xy
 * @param {number} from
 * @param {number} to
 * @param {number} step
 * @param {Float32Array} kept
 * @param {number} at
 * @returns {number}
 */
function keepVertices(xy, from, to, step, kept, at) {
  const first = at;
  for (let v = from; v < to; v++) {
    const [x, y] = [xy[2 * v], xy[2 * v + 1]];
    const left = to - v; // so many are still to come, this one counted
    const near = at > first && Math.hypot(x - kept[2 * at - 2], y - kept[2 * at - 1]) < step;
    if (near && at - first + left > 3) continue;
    kept[2 * at] = x;
    kept[2 * at + 1] = y;
    at += 1;
  }
  return at;
}

/**
 * Write the vertices of one outline, twice each, with their miters.
 *
 * @param {Float32Array} xy
 * @param {number} from
 * @param {number} to
 * @param {Float32Array} vertices
 */
function addMiters(xy, from, to, vertices) {
  const count = to - from;
  for (let j = 0; j < count; j++) {
    const [p, q, r] = [from + ((j + count - 1) % count), from + j, from + ((j + 1) % count)];
    let [ax, ay] = [xy[2 * q] - xy[2 * p], xy[2 * q + 1] - xy[2 * p + 1]];
    let [bx, by] = [xy[2 * r] - xy[2 * q], xy[2 * r + 1] - xy[2 * q + 1]];
    const [a, b] = [Math.hypot(ax, ay) || 1, Math.hypot(bx, by) || 1];
    [ax, ay, bx, by] = [ax / a, ay / a, bx / b, by / b];
    // the normals of both sides, (y, -x), halved: their sum's length is the cosine of half the turn
    const [nx, ny] = [(ay + by) / 2, -(ax + bx) / 2];
    const square = Math.max(nx * nx + ny * ny, 1 / LONGEST_MITER ** 2);
    const v = 8 * q;
    vertices[v] = vertices[v + 4] = xy[2 * q];
    vertices[v + 1] = vertices[v + 5] = xy[2 * q + 1];
    vertices[v + 2] = nx / square;
    vertices[v + 3] = ny / square;
    vertices[v + 6] = -nx / square;
    vertices[v + 7] = -ny / square;
  }
}

/**
 * Return which vertices of a mesh make thin lines, two each.
 *
 * @param {Uint32Array} start
 * @returns {Uint32Array}
 */
export function lineIndices(start) {
  const total = start[start.length - 1];
  const found = new Uint32Array(2 * total);
  for (let i = 0; i + 1 < start.length; i++) {
    for (let v = start[i]; v < start[i + 1]; v++) {
      found[2 * v] = 2 * v;
      found[2 * v + 1] = 2 * (v + 1 < start[i + 1] ? v + 1 : start[i]);
    }
  }
  return found;
}

/**
 * Return which vertices of a mesh make lines with a width: two triangles from each vertex to the next.
 *
 * @param {Uint32Array} start
 * @returns {Uint32Array}
 */
export function bandIndices(start) {
  const total = start[start.length - 1];
  const found = new Uint32Array(6 * total);
  for (let i = 0; i + 1 < start.length; i++) {
    for (let v = start[i]; v < start[i + 1]; v++) {
      const next = v + 1 < start[i + 1] ? v + 1 : start[i];
      found.set([2 * v, 2 * v + 1, 2 * next, 2 * next, 2 * v + 1, 2 * next + 1], 6 * v);
    }
  }
  return found;
}
