// @ts-check
/** Nuclei on a WebGL2 canvas: points, outlines with a casing, density, marks of labels. */
import { bandIndices, lineIndices, outlineCenters, outlineMesh } from "./binary.js";
import { LINE_FRAGMENT, LINE_VERTEX, POINT_FRAGMENT, POINT_VERTEX, QUAD_FRAGMENT, QUAD_VERTEX } from "./shaders.js";

/** @typedef {import("./geometry.js").Affine} Affine */

/**
 * A tile on the graphics card, with what the page still needs of it.
 *
 * @typedef {object} DrawnTile
 * @property {"points" | "outlines" | "density"} kind
 * @property {number} count
 * @property {number} vertices
 * @property {[number, number]} corner  level-0 pixels
 * @property {number} width  level-0 pixels
 * @property {Uint32Array} row
 * @property {Float32Array} x
 * @property {Float32Array} y
 * @property {Uint8Array} type
 * @property {Float32Array | null} value
 * @property {Uint32Array | null} owner  of each vertex of outlines
 * @property {Uint32Array} start  first vertex of each outline
 * @property {import("./binary.js").DensityTile | null} density
 * @property {WebGLBuffer | null} place
 * @property {WebGLBuffer | null} style
 * @property {WebGLBuffer | null} thin  indices of thin lines
 * @property {WebGLBuffer | null} bands  indices of lines with a width
 * @property {WebGLVertexArrayObject | null} array
 * @property {WebGLTexture | null} texture
 * @property {string} painted  what the texture or the shades were made for
 *
 * @typedef {{map: Affine, width: number, height: number, ratio: number}} Screen
 */

/** Narrower lines are drawn as the card's own, which take a fifth of the time where a processor draws. */
const LEAST_WIDTH = 1.5;

/** The canvas and what is drawn on it. */
export class NucleiLayer {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: false, premultipliedAlpha: true, depth: false, stencil: false });
    if (!gl) {
      const hint = "Turn hardware acceleration on in its settings, or use another browser";
      throw Object.assign(new Error("This browser offers no WebGL2, with which nuclei are drawn"), { hint });
    }
    this.canvas = canvas;
    this.gl = gl;
    this.points = this.program(POINT_VERTEX, POINT_FRAGMENT);
    this.lines = this.program(LINE_VERTEX, LINE_FRAGMENT);
    this.quads = this.program(QUAD_VERTEX, QUAD_FRAGMENT);
    this.colors = gl.createTexture();
    this.empty = gl.createVertexArray();
    this.byNumber = false;
  }

  /**
   * Return a linked program with the places of its uniforms.
   *
   * @param {string} vertex
   * @param {string} fragment
   */
  program(vertex, fragment) {
    const { gl } = this;
    const program = gl.createProgram();
    for (const [kind, source] of /** @type {[number, string][]} */ ([[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]])) {
      const shader = gl.createShader(kind);
      if (!shader) throw new Error("the graphics driver was lost; load the page again");
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) {
      throw new Error(`the graphics driver refuses a shader: ${gl.getProgramInfoLog(program)}`);
    }
    /** @type {Map<string, WebGLUniformLocation | null>} */
    const places = new Map();
    /** @param {string} name */
    const uniform = (name) => {
      if (!places.has(name)) places.set(name, gl.getUniformLocation(program, name));
      return places.get(name) ?? null;
    };
    return { program, uniform };
  }

  /**
   * Set the colours of types and numbers, 256 each, and which of them are shown.
   *
   * @param {Uint8Array} types
   * @param {Uint8Array} numbers
   * @param {boolean} byNumber
   */
  setColors(types, numbers, byNumber) {
    const { gl } = this;
    this.byNumber = byNumber;
    const both = new Uint8Array(2 * 4 * 256);
    both.set(types);
    both.set(numbers, 4 * 256);
    gl.bindTexture(gl.TEXTURE_2D, this.colors);
    this.textureOptions();
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, 256, 2, 0, gl.RGBA, gl.UNSIGNED_BYTE, both);
  }

  textureOptions() {
    const { gl } = this;
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
  }

  /**
   * Return a tile without anything in it.
   *
   * @param {DrawnTile["kind"]} kind
   * @param {[number, number]} corner
   * @param {number} width
   * @returns {DrawnTile}
   */
  blank(kind, corner, width) {
    return {
      kind,
      count: 0,
      vertices: 0,
      corner,
      width,
      row: new Uint32Array(0),
      x: new Float32Array(0),
      y: new Float32Array(0),
      type: new Uint8Array(0),
      value: null,
      owner: null,
      start: new Uint32Array(1),
      density: null,
      place: null,
      style: null,
      thin: null,
      bands: null,
      array: null,
      texture: null,
      painted: "",
    };
  }

  /**
   * Return points, on the graphics card.
   *
   * @param {import("./binary.js").PointTile} data
   * @param {[number, number]} corner
   * @param {number} width
   * @returns {DrawnTile}
   */
  pointTile(data, corner, width) {
    const { count, row, x, y, type, value } = data;
    const tile = { ...this.blank("points", corner, width), count, vertices: count, row, x, y, type, value };
    const places = new Float32Array(2 * count);
    for (let i = 0; i < count; i++) {
      places[2 * i] = x[i];
      places[2 * i + 1] = y[i];
    }
    const { gl } = this;
    this.buffers(tile, places);
    this.attribute(0, tile.place, 2, gl.FLOAT, 0, 0);
    this.attribute(1, tile.style, 2, gl.UNSIGNED_BYTE, 0, 0);
    gl.bindVertexArray(null);
    return tile;
  }

  /**
   * Return outlines, on the graphics card.
   *
   * @param {import("./binary.js").OutlineTile} data
   * @param {[number, number]} corner
   * @param {number} width
   * @param {number} step  level-0 pixels; finer detail of outlines is left out
   * @returns {DrawnTile}
   */
  outlineTile(data, corner, width, step) {
    const { vertices, owner, start } = outlineMesh(data, step);
    const { count, row, type, value } = data;
    const centers = outlineCenters(data);
    const tile = { ...this.blank("outlines", corner, width), count, vertices: owner.length, row, type, value, owner, start, ...centers };
    const { gl } = this;
    this.buffers(tile, vertices);
    this.attribute(0, tile.place, 2, gl.FLOAT, 16, 0);
    this.attribute(1, tile.style, 2, gl.UNSIGNED_BYTE, 0, 0);
    this.attribute(2, tile.place, 2, gl.FLOAT, 16, 8);
    gl.bindVertexArray(null);
    return tile;
  }

  /**
   * Return marks with colours of their own.
   *
   * @param {{x: number, y: number, color: number}[]} marks  colour as 0xrrggbb
   * @param {[number, number]} corner
   * @returns {DrawnTile}
   */
  markTile(marks, corner) {
    const tile = { ...this.blank("points", corner, 0), vertices: marks.length };
    const { gl } = this;
    this.buffers(tile, new Float32Array(marks.flatMap(({ x, y }) => [x - corner[0], y - corner[1]])));
    const colors = new Uint8Array(marks.flatMap(({ color }) => [color >> 16, (color >> 8) & 255, color & 255, 255]));
    gl.bindBuffer(gl.ARRAY_BUFFER, tile.style);
    gl.bufferData(gl.ARRAY_BUFFER, colors, gl.STATIC_DRAW);
    this.attribute(0, tile.place, 2, gl.FLOAT, 0, 0);
    this.attribute(2, tile.style, 4, gl.UNSIGNED_BYTE, 0, 0);
    gl.bindVertexArray(null);
    return tile;
  }

  /**
   * Return counts, to be drawn as a picture.
   *
   * @param {import("./binary.js").DensityTile} density
   * @param {[number, number]} corner
   * @param {number} width
   * @returns {DrawnTile}
   */
  densityTile(density, corner, width) {
    return { ...this.blank("density", corner, width), density, texture: this.gl.createTexture() };
  }

  /**
   * Make the buffers of a tile and leave its array of attributes bound.
   *
   * @param {DrawnTile} tile
   * @param {Float32Array} places
   */
  buffers(tile, places) {
    const { gl } = this;
    tile.array = gl.createVertexArray();
    gl.bindVertexArray(tile.array);
    tile.place = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, tile.place);
    gl.bufferData(gl.ARRAY_BUFFER, places, gl.STATIC_DRAW);
    tile.style = gl.createBuffer();
    this.setShades(tile, null, "");
  }

  /**
   * @param {number} location
   * @param {WebGLBuffer | null} buffer
   * @param {number} size
   * @param {number} type
   * @param {number} stride
   * @param {number} offset
   */
  attribute(location, buffer, size, type, stride, offset) {
    const { gl } = this;
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.enableVertexAttribArray(location);
    gl.vertexAttribPointer(location, size, type, false, stride, offset);
  }

  /**
   * Set the places of nuclei on the map of numbers.
   *
   * @param {DrawnTile} tile
   * @param {Uint8Array | null} shade  one per nucleus
   * @param {string} painted  what they stand for
   */
  setShades(tile, shade, painted) {
    const { gl } = this;
    const style = new Uint8Array(2 * tile.vertices);
    for (let i = 0; i < tile.vertices; i++) {
      const owner = tile.owner ? tile.owner[i] : i;
      style[2 * i] = tile.type[owner];
      style[2 * i + 1] = shade ? shade[owner] : 0;
    }
    gl.bindBuffer(gl.ARRAY_BUFFER, tile.style);
    gl.bufferData(gl.ARRAY_BUFFER, style, gl.DYNAMIC_DRAW);
    tile.painted = painted;
  }

  /**
   * Set the picture of a tile of counts.
   *
   * @param {DrawnTile} tile
   * @param {Uint8Array} picture
   * @param {string} painted
   */
  setPicture(tile, picture, painted) {
    const { gl } = this;
    const grid = tile.density?.grid ?? 0;
    gl.bindTexture(gl.TEXTURE_2D, tile.texture);
    this.textureOptions();
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, grid, grid, 0, gl.RGBA, gl.UNSIGNED_BYTE, picture);
    tile.painted = painted;
  }

  /**
   * Free what a tile has on the graphics card.
   *
   * @param {DrawnTile} tile
   */
  release(tile) {
    const { gl } = this;
    gl.deleteVertexArray(tile.array);
    gl.deleteBuffer(tile.place);
    gl.deleteBuffer(tile.style);
    gl.deleteBuffer(tile.thin);
    gl.deleteBuffer(tile.bands);
    gl.deleteTexture(tile.texture);
  }

  /**
   * Return about how many bytes a tile takes, here and on the graphics card.
   *
   * @param {DrawnTile} tile
   * @returns {number}
   */
  static bytes(tile) {
    const grid = tile.density?.grid ?? 0;
    return 200 + 30 * tile.count + 36 * tile.vertices + 4 * grid * grid * ((tile.density?.classes ?? 0) + 1);
  }

  /**
   * Begin a frame: an empty canvas of the right size.
   *
   * @param {Screen} screen
   */
  begin(screen) {
    const { gl, canvas } = this;
    const [width, height] = [Math.round(screen.width * screen.ratio), Math.round(screen.height * screen.ratio)];
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.activeTexture(gl.TEXTURE0);
  }

  /**
   * Take a program and tell it where a tile is.
   *
   * @param {ReturnType<NucleiLayer["program"]>} with_
   * @param {Screen} screen
   * @param {[number, number]} corner
   */
  use({ program, uniform }, screen, corner) {
    const { gl } = this;
    const { map } = screen;
    gl.useProgram(program);
    gl.uniform4f(uniform("matrix"), map.a, map.b, map.c, map.d);
    // doubles here: the shader's floats would shake at 100,000 pixels
    gl.uniform2f(uniform("origin"), map.a * corner[0] + map.c * corner[1] + map.e, map.b * corner[0] + map.d * corner[1] + map.f);
    gl.uniform2f(uniform("screen"), screen.width, screen.height);
    gl.uniform1i(uniform("byNumber"), Number(this.byNumber));
    gl.uniform1i(uniform("colors"), 0);
  }

  /**
   * Draw points.
   *
   * @param {Screen} screen
   * @param {DrawnTile} tile
   * @param {number} size  CSS pixels
   * @param {boolean} [isMark]  whether they have colours of their own
   */
  drawPoints(screen, tile, size, isMark = false) {
    const { gl } = this;
    this.use(this.points, screen, tile.corner);
    gl.bindTexture(gl.TEXTURE_2D, this.colors);
    gl.uniform1f(this.points.uniform("size"), size * screen.ratio);
    gl.uniform1f(this.points.uniform("casing"), isMark ? 4.4 / size : size >= 6 ? 1.8 / size : 0);
    gl.uniform1i(this.points.uniform("isMark"), Number(isMark));
    gl.bindVertexArray(tile.array);
    gl.drawArrays(gl.POINTS, 0, tile.vertices);
    gl.bindVertexArray(null);
  }

  /**
   * Draw outlines: first the casing, then the colour.
   *
   * @param {Screen} screen
   * @param {DrawnTile} tile
   * @param {number} width  CSS pixels
   */
  drawOutlines(screen, tile, width) {
    if (!tile.vertices) return;
    const { gl } = this;
    const banded = width >= LEAST_WIDTH;
    this.use(this.lines, screen, tile.corner);
    gl.bindTexture(gl.TEXTURE_2D, this.colors);
    gl.bindVertexArray(tile.array);
    const indices = this.bindIndices(tile, banded);
    for (const casing of [true, false]) {
      const shift = casing && !banded ? 1 / screen.ratio : 0; // beside a thin line lies its casing
      gl.uniform2f(this.lines.uniform("shift"), shift, shift);
      gl.uniform1i(this.lines.uniform("isCasing"), Number(casing));
      gl.uniform1f(this.lines.uniform("halfWidth"), banded ? width / 2 + Number(casing) : 0);
      gl.uniform1f(this.lines.uniform("strength"), casing ? 0.65 : 1);
      gl.drawElements(banded ? gl.TRIANGLES : gl.LINES, indices, gl.UNSIGNED_INT, 0);
    }
    gl.bindVertexArray(null);
  }

  /**
   * Bind the indices of outlines, made when they are first drawn so, and return how many there are.
   *
   * @param {DrawnTile} tile
   * @param {boolean} banded
   * @returns {number}
   */
  bindIndices(tile, banded) {
    const { gl } = this;
    const known = banded ? tile.bands : tile.thin;
    const buffer = known ?? gl.createBuffer();
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffer);
    if (!known) {
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, banded ? bandIndices(tile.start) : lineIndices(tile.start), gl.STATIC_DRAW);
      if (banded) tile.bands = buffer;
      else tile.thin = buffer;
    }
    return tile.vertices * (banded ? 3 : 1);
  }

  /**
   * Draw the picture of a tile of counts.
   *
   * @param {Screen} screen
   * @param {DrawnTile} tile
   */
  drawPicture(screen, tile) {
    const { gl } = this;
    this.use(this.quads, screen, tile.corner);
    gl.uniform1f(this.quads.uniform("extent"), tile.width);
    gl.uniform1i(this.quads.uniform("picture"), 0);
    gl.bindTexture(gl.TEXTURE_2D, tile.texture);
    gl.bindVertexArray(this.empty);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    gl.bindVertexArray(null);
  }
}
