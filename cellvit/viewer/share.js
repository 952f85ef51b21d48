// @ts-check
/**
 * Answers for the page of a share what a server would: a page from a disk may load pictures and scripts, and no data.
 * So nuclei lie in scripts, which hand them over here as base64. `data/facts.js` runs before this one.
 */
(() => {
  "use strict";

  /**
   * @typedef {object} Facts
   * @property {Record<string, any>} json  answers by address
   * @property {string} points  u32 N, u32 row[N], f32 x[N], f32 y[N], u8 class[N]; level-0 pixels
   * @property {number} classes  one more than the highest id
   * @property {number} base  side of the largest square, level-0 pixels
   * @property {number} width  side of the squares of outlines
   * @property {string[]} squares  those that hold any, as "X_Y"
   * @property {{slide: string, x: number, y: number, width: number, height: number} | null} start  what is seen first
   */

  /**
   * @typedef {object} Outlines
   * @property {number} left
   * @property {number} top
   * @property {Uint32Array} index  which points they are of
   * @property {Uint32Array} start
   * @property {Float32Array} xy  from the corner of the square
   */

  const GRID = 64;
  const KEPT = 48;
  const scope = /** @type {any} */ (globalThis);
  const facts = /** @type {Facts} */ (scope.CELLVIT_FACTS);
  const points = readPoints(bytesOf(facts.points));
  const squares = new Set(facts.squares);
  /** @type {Map<string, Promise<Outlines>>} the last used at the end */
  const known = new Map();
  /** @type {Map<string, (text: string) => void>} */
  const awaited = new Map();
  facts.points = "";
  if (facts.start && !location.hash) {
    const { slide, x, y, width, height } = facts.start;
    const scale = 0.8 * Math.min(innerWidth / width, innerHeight / height);
    history.replaceState(null, "", `#slide=${slide}&x=${x}&y=${y}&scale=${scale}`);
  }

  /**
   * @param {string} text
   * @returns {ArrayBuffer}
   */
  function bytesOf(text) {
    const plain = atob(text);
    const bytes = new Uint8Array(plain.length);
    for (let i = 0; i < plain.length; i++) bytes[i] = plain.charCodeAt(i);
    return bytes.buffer;
  }

  /** @param {ArrayBuffer} buffer */
  function readPoints(buffer) {
    const count = new DataView(buffer).getUint32(0, true);
    return {
      count,
      row: new Uint32Array(buffer, 4, count),
      x: new Float32Array(buffer, 4 + 4 * count, count),
      y: new Float32Array(buffer, 4 + 8 * count, count),
      type: new Uint8Array(buffer, 4 + 12 * count, count),
    };
  }

  /**
   * Return the outlines of a square, which lie in a script of its name.
   *
   * @param {number} x
   * @param {number} y
   * @returns {Promise<Outlines>}
   */
  function outlinesOf(x, y) {
    const name = `${x}_${y}`;
    const loading = known.get(name) ?? loadScript(name).then((text) => readOutlines(bytesOf(text), x, y));
    known.delete(name);
    known.set(name, loading);
    loading.catch(() => known.delete(name));
    for (const old of known.keys()) {
      if (known.size <= KEPT) break;
      known.delete(old);
    }
    return loading;
  }

  /**
   * @param {ArrayBuffer} buffer
   * @param {number} x
   * @param {number} y
   * @returns {Outlines}
   */
  function readOutlines(buffer, x, y) {
    const [count, vertices] = new Uint32Array(buffer, 0, 2);
    return {
      left: x * facts.width,
      top: y * facts.width,
      index: new Uint32Array(buffer, 8, count),
      start: new Uint32Array(buffer, 8 + 4 * count, count + 1),
      xy: new Float32Array(buffer, 12 + 8 * count, 2 * vertices),
    };
  }

  /**
   * @param {string} name
   * @returns {Promise<string>}
   */
  function loadScript(name) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      awaited.set(name, resolve);
      script.onload = () => script.remove();
      script.onerror = () => {
        script.remove();
        reject(new Error(`data/outlines-${name}.js is missing: copy the folder of this page as a whole`));
      };
      script.src = `data/outlines-${name}.js`;
      document.head.append(script);
    });
  }

  /**
   * Return which points lie in a square.
   *
   * @param {number} left
   * @param {number} top
   * @param {number} width
   * @returns {Uint32Array}
   */
  function inside(left, top, width) {
    const found = [];
    const { x, y, count } = points;
    for (let i = 0; i < count; i++) {
      if (x[i] >= left && x[i] < left + width && y[i] >= top && y[i] < top + width) found.push(i);
    }
    return Uint32Array.from(found);
  }

  /**
   * @param {number} left
   * @param {number} top
   * @param {number} width
   * @returns {ArrayBuffer}
   */
  function pointTile(left, top, width) {
    const chosen = inside(left, top, width);
    const count = chosen.length;
    const buffer = new ArrayBuffer(4 + 13 * count);
    new DataView(buffer).setUint32(0, count, true);
    new Uint32Array(buffer, 4, count).set(chosen.map((i) => points.row[i]));
    new Float32Array(buffer, 4 + 4 * count, count).set(Float32Array.from(chosen, (i) => points.x[i] - left));
    new Float32Array(buffer, 4 + 8 * count, count).set(Float32Array.from(chosen, (i) => points.y[i] - top));
    new Uint8Array(buffer, 4 + 12 * count, count).set(Uint8Array.from(chosen, (i) => points.type[i]));
    return buffer;
  }

  /**
   * @param {number} left
   * @param {number} top
   * @param {number} width
   * @returns {ArrayBuffer}
   */
  function densityTile(left, top, width) {
    const counts = new Uint32Array(2 + facts.classes * GRID * GRID);
    counts[0] = facts.classes;
    counts[1] = GRID;
    const cell = width / GRID;
    for (const i of inside(left, top, width)) {
      const column = Math.min(GRID - 1, Math.floor((points.x[i] - left) / cell));
      const row = Math.min(GRID - 1, Math.floor((points.y[i] - top) / cell));
      counts[2 + (points.type[i] * GRID + row) * GRID + column] += 1;
    }
    return counts.buffer;
  }

  /**
   * @param {number} left
   * @param {number} top
   * @param {number} width
   * @returns {Promise<ArrayBuffer>}
   */
  async function outlineTile(left, top, width) {
    const parts = [];
    const last = (/** @type {number} */ side) => Math.ceil((side + width) / facts.width);
    for (let y = Math.floor(top / facts.width); y < last(top); y++) {
      for (let x = Math.floor(left / facts.width); x < last(left); x++) {
        if (squares.has(`${x}_${y}`)) parts.push(outlinesOf(x, y));
      }
    }
    const wanted = new Set(inside(left, top, width));
    /** @type {{part: Outlines, at: number}[]} */
    const chosen = [];
    let vertices = 0;
    for (const part of await Promise.all(parts)) {
      for (let at = 0; at < part.index.length; at++) {
        if (!wanted.has(part.index[at])) continue;
        chosen.push({ part, at });
        vertices += part.start[at + 1] - part.start[at];
      }
    }
    const count = chosen.length;
    const buffer = new ArrayBuffer(12 + 8 * count + 8 * vertices + count);
    new Uint32Array(buffer, 0, 2).set([count, vertices]);
    const row = new Uint32Array(buffer, 8, count);
    const start = new Uint32Array(buffer, 8 + 4 * count, count + 1);
    const xy = new Float32Array(buffer, 12 + 8 * count, 2 * vertices);
    const type = new Uint8Array(buffer, 12 + 8 * count + 8 * vertices, count);
    chosen.forEach(({ part, at }, i) => {
      const [from, to] = [part.start[at], part.start[at + 1]];
      row[i] = points.row[part.index[at]];
      type[i] = points.type[part.index[at]];
      for (let v = from; v < to; v++) {
        const place = 2 * (start[i] + v - from);
        xy[place] = part.xy[2 * v] + part.left - left;
        xy[place + 1] = part.xy[2 * v + 1] + part.top - top;
      }
      start[i + 1] = start[i] + to - from;
    });
    return buffer;
  }

  scope.CELLVIT_STATIC = {
    json: facts.json,

    /**
     * Return a tile of nuclei.
     *
     * @param {string} path
     * @returns {Promise<ArrayBuffer>}
     */
    async load(path) {
      const found = /\/(points|density|outlines)\/(\d+)\/(\d+)_(\d+)$/.exec(path);
      if (!found) throw new Error(`this page does not hold ${path}`);
      const [z, x, y] = found.slice(2).map(Number);
      const width = facts.base / 2 ** z;
      const [left, top] = [x * width, y * width];
      if (found[1] === "points") return pointTile(left, top, width);
      return found[1] === "density" ? densityTile(left, top, width) : outlineTile(left, top, width);
    },

    /**
     * Take outlines in; their script calls it.
     *
     * @param {string} name
     * @param {string} text
     */
    take(name, text) {
      awaited.get(name)?.(text);
      awaited.delete(name);
    },
  };
})();
