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
 * Return the vertices of outlines with the first of each again at its end, and which nucleus each belongs to.
 *
 * A line from every vertex to the next one draws them all, where both belong to the same nucleus.
 *
 * @param {{count: number, start: Uint32Array, xy: Float32Array}} tile
 * @returns {{xy: Float32Array, owner: Uint32Array}}
 */
export function closedOutlines(tile) {
  const total = tile.xy.length / 2 + tile.count;
  const xy = new Float32Array(2 * total);
  const owner = new Uint32Array(total);
  let at = 0;
  for (let i = 0; i < tile.count; i++) {
    const [from, to] = [tile.start[i], tile.start[i + 1]];
    xy.set(tile.xy.subarray(2 * from, 2 * to), 2 * at);
    const end = at + to - from;
    if (to > from) {
      xy[2 * end] = tile.xy[2 * from];
      xy[2 * end + 1] = tile.xy[2 * from + 1];
    }
    owner.fill(i, at, end + 1);
    at = end + 1;
  }
  return { xy, owner };
}
