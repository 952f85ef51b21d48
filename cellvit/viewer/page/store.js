// @ts-check
/** Tiles of nuclei: which are wanted, on their way, or kept. */

/**
 * @typedef {object} TileRequest
 * @property {string} key
 * @property {string} kind
 * @property {import("./geometry.js").TileAddress} tile
 */

/**
 * @template T
 * @typedef {object} StoreOptions
 * @property {(request: TileRequest, signal: AbortSignal) => Promise<T>} load
 * @property {(tile: T) => void} release
 * @property {(tile: T) => number} size  bytes
 * @property {() => void} changed  a tile came
 * @property {(error: unknown) => void} failed
 * @property {number} limit  bytes that are kept
 * @property {number} atOnce  requests at a time
 */

/**
 * Loads wanted tiles, the first ones first, gives up those no longer wanted, and forgets those used longest ago.
 *
 * @template T
 */
export class TileStore {
  /** @param {StoreOptions<T>} options */
  constructor(options) {
    this.options = options;
    /** @type {Map<string, T>} the last used at the end */
    this.kept = new Map();
    /** @type {Map<string, AbortController>} */
    this.coming = new Map();
    /** @type {TileRequest[]} */
    this.wanted = [];
    /** @type {Set<string>} */
    this.broken = new Set();
    this.bytes = 0;
  }

  /**
   * State what is wanted now, in order.
   *
   * @param {TileRequest[]} requests
   */
  want(requests) {
    this.wanted = requests;
    const keys = new Set(requests.map(({ key }) => key));
    for (const [key, controller] of this.coming) {
      if (!keys.has(key)) {
        this.coming.delete(key);
        controller.abort();
      }
    }
    this.start();
  }

  /**
   * Return a tile that is there, or undefined.
   *
   * @param {string} key
   * @returns {T | undefined}
   */
  get(key) {
    const tile = this.kept.get(key);
    if (tile !== undefined) {
      this.kept.delete(key);
      this.kept.set(key, tile);
    }
    return tile;
  }

  /** Return whether all wanted tiles are there, or cannot be had. */
  get complete() {
    return this.wanted.every(({ key }) => this.kept.has(key) || this.broken.has(key));
  }

  /** Ask again for what failed. */
  retry() {
    this.broken.clear();
    this.start();
  }

  /** Forget everything. */
  clear() {
    this.want([]);
    for (const tile of this.kept.values()) this.options.release(tile);
    this.kept.clear();
    this.broken.clear();
    this.bytes = 0;
  }

  /** Begin as many requests as may run. */
  start() {
    for (const request of this.wanted) {
      if (this.coming.size >= this.options.atOnce) return;
      const { key } = request;
      if (!this.kept.has(key) && !this.coming.has(key) && !this.broken.has(key)) void this.load(request);
    }
  }

  /** @param {TileRequest} request */
  async load(request) {
    const controller = new AbortController();
    this.coming.set(request.key, controller);
    try {
      const tile = await this.options.load(request, controller.signal);
      if (controller.signal.aborted) this.options.release(tile);
      else this.keep(request.key, tile);
    } catch (error) {
      if (!controller.signal.aborted) {
        this.broken.add(request.key);
        this.options.failed(error);
      }
    }
    if (this.coming.get(request.key) === controller) this.coming.delete(request.key);
    if (!controller.signal.aborted) this.options.changed();
    this.start();
  }

  /**
   * @param {string} key
   * @param {T} tile
   */
  keep(key, tile) {
    this.kept.set(key, tile);
    this.bytes += this.options.size(tile);
    const wanted = new Set(this.wanted.map((request) => request.key));
    for (const [old, kept] of this.kept) {
      if (this.bytes <= this.options.limit) break;
      if (wanted.has(old)) continue;
      this.kept.delete(old);
      this.bytes -= this.options.size(kept);
      this.options.release(kept);
    }
  }
}
