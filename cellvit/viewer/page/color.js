// @ts-check
/** Colours: those of types come from the server; numbers are shown on a map made here. */

/** @typedef {[number, number, number]} Rgb  each 0 to 255 */

/**
 * Return the red, green and blue of "#rrggbb"; grey for anything else.
 *
 * @param {string} text
 * @returns {Rgb}
 */
export function parseColor(text) {
  const found = /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(text);
  if (!found) return [128, 128, 128];
  return [parseInt(found[1], 16), parseInt(found[2], 16), parseInt(found[3], 16)];
}

/**
 * Return a colour of the space OKLCH (B. Ottosson, "A perceptual color space for image processing", 2020) as sRGB.
 *
 * @param {number} lightness  0 to 1
 * @param {number} chroma
 * @param {number} hue  degrees
 * @returns {Rgb}
 */
export function oklch(lightness, chroma, hue) {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  const [red, green, blue] = linear.map((value) => {
    const cut = Math.min(1, Math.max(0, value));
    return Math.round(255 * (cut <= 0.0031308 ? 12.92 * cut : 1.055 * cut ** (1 / 2.4) - 0.055));
  });
  return [red, green, blue];
}

/**
 * Return the colour of a share on the map of numbers: teal (0) over green to light yellow (1).
 *
 * Lightness grows evenly, so it reads without colour too, and no hue of it is that of haematoxylin or eosin.
 *
 * @param {number} share  0 to 1
 * @returns {Rgb}
 */
export function rampColor(share) {
  const t = Math.min(1, Math.max(0, share));
  return oklch(0.46 + 0.49 * t, 0.09 + 0.17 * t * (1.3 - t), 205 - 100 * t);
}

/**
 * Return the map of numbers as 256 colours with alpha.
 *
 * @returns {Uint8Array}
 */
export function rampTexture() {
  const texture = new Uint8Array(4 * 256);
  for (let i = 0; i < 255; i++) texture.set([...rampColor(i / 254), 255], 4 * i);
  texture.set([128, 128, 128, 255], 4 * 255); // missing
  return texture;
}

/**
 * Return colours by index as 256 colours with alpha 255, 0 where hidden.
 *
 * @param {{id: number, color: string}[]} entries
 * @param {ReadonlySet<number>} hidden
 * @returns {Uint8Array}
 */
export function classTexture(entries, hidden) {
  const texture = new Uint8Array(4 * 256);
  for (let i = 0; i < 256; i++) texture.set([128, 128, 128, 255], 4 * i);
  for (const { id, color } of entries) texture.set(parseColor(color), 4 * id);
  for (const id of hidden) texture[4 * id + 3] = 0;
  return texture;
}

/**
 * Return places on the map of numbers, 0 to 254, and 255 for missing ones.
 *
 * @param {Float32Array} values
 * @param {number} low
 * @param {number} high
 * @returns {Uint8Array}
 */
export function shades(values, low, high) {
  const found = new Uint8Array(values.length);
  const step = high > low ? 254 / (high - low) : 0;
  for (let i = 0; i < values.length; i++) {
    const place = Number.isNaN(values[i]) ? 255 : Math.round((values[i] - low) * step);
    found[i] = Number.isNaN(values[i]) ? 255 : Math.min(254, Math.max(0, place));
  }
  return found;
}

/**
 * Return a tile of counts as a picture: each cell has the colour of one of its visible nuclei, denser where there are more.
 *
 * Which one is drawn by lot, so that types show in their shares, as points do, and not only the commonest.
 *
 * @param {import("./binary.js").DensityTile} tile
 * @param {Uint8Array} texture  colours of the types
 * @param {Uint8Array | null} ramp  shows how many there are instead of which
 * @param {number} most  count that is shown full
 * @returns {Uint8Array}
 */
export function densityPicture(tile, texture, ramp, most) {
  const cells = tile.grid * tile.grid;
  const picture = new Uint8Array(4 * cells);
  const counts = new Uint32Array(tile.classes);
  for (let cell = 0; cell < cells; cell++) {
    let total = 0;
    for (let id = 0; id < tile.classes; id++) {
      counts[id] = texture[4 * id + 3] ? tile.count[id * cells + cell] : 0;
      total += counts[id];
    }
    if (!total) continue;
    let lot = (Math.imul(cell + 1, 2654435761) >>> 0) % total; // the same at every visit
    let drawn = 0;
    while (lot >= counts[drawn]) lot -= counts[drawn++];
    const share = Math.min(1, Math.log1p(total) / Math.log1p(most));
    const [from, at] = ramp ? [ramp, 4 * Math.round(254 * share)] : [texture, 4 * drawn];
    picture.set([from[at], from[at + 1], from[at + 2], Math.round(255 * (0.25 + 0.5 * share))], 4 * cell);
  }
  return picture;
}

/**
 * Return the largest number of visible nuclei in a cell.
 *
 * @param {import("./binary.js").DensityTile} tile
 * @param {Uint8Array} texture
 * @returns {number}
 */
export function largestCount(tile, texture) {
  const cells = tile.grid * tile.grid;
  let most = 0;
  for (let cell = 0; cell < cells; cell++) {
    let total = 0;
    for (let id = 0; id < tile.classes; id++) if (texture[4 * id + 3]) total += tile.count[id * cells + cell];
    most = Math.max(most, total);
  }
  return most;
}
