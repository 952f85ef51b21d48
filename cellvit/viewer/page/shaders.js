// @ts-check
/** The programs that the graphics card runs. */

/** What all of them know: where a tile is, and the colours. */
const COMMON = `#version 300 es
precision highp float;
uniform vec4 matrix;      // from the tile's pixels to the screen's, columns one after the other
uniform vec2 origin;      // the tile's corner on the screen, CSS pixels
uniform vec2 screen;      // size, CSS pixels
uniform sampler2D colors; // first row: types, second: numbers
uniform bool byNumber;
vec2 placed(vec2 p) { return mat2(matrix.xy, matrix.zw) * p + origin; }
vec4 clip(vec2 p) { return vec4(p / screen * vec2(2.0, -2.0) + vec2(-1.0, 1.0), 0.0, 1.0); }
vec4 colorOf(vec2 style) {
  vec4 type = texelFetch(colors, ivec2(int(style.x), 0), 0);
  return vec4(byNumber ? texelFetch(colors, ivec2(int(style.y), 1), 0).rgb : type.rgb, type.a);
}`;

/** Places points, whose size is the same for all. */
export const POINT_VERTEX = `${COMMON}
layout(location = 0) in vec2 place;
layout(location = 1) in vec2 style;
layout(location = 2) in vec4 own; // colour of a mark, 0 to 255
uniform float size;
uniform bool isMark;
flat out vec4 color;
void main() {
  color = isMark ? own / 255.0 : colorOf(style);
  gl_Position = color.a > 0.0 ? clip(placed(place)) : vec4(2.0, 2.0, 0.0, 1.0);
  gl_PointSize = size;
}`;

/** Squares, or discs with a rim. */
export const POINT_FRAGMENT = `#version 300 es
precision highp float;
flat in vec4 color;
uniform float casing; // share of the radius, 0 for small points, which are squares
uniform bool isMark;
out vec4 shown;
void main() {
  if (casing <= 0.0) { shown = vec4(color.rgb, 1.0); return; }
  float r = length(gl_PointCoord - 0.5) * 2.0;
  if (r > 1.0) discard;
  float bright = dot(color.rgb, vec3(0.3, 0.59, 0.11));
  vec3 around = bright > 0.55 ? vec3(0.1, 0.07, 0.14) : vec3(1.0);
  // a mark has both rims: it must stand out from outlines and points of any colour
  if (isMark) around = r > 1.0 - casing * 0.5 ? vec3(0.0) : vec3(1.0);
  shown = vec4(r > 1.0 - casing ? around : color.rgb, 1.0);
}`;

/** Moves both copies of a vertex apart along its miter. */
export const LINE_VERTEX = `${COMMON}
layout(location = 0) in vec2 place;
layout(location = 1) in vec2 style;
layout(location = 2) in vec2 miter;
uniform float halfWidth; // CSS pixels; 0 for thin lines
uniform vec2 shift;      // CSS pixels
uniform bool isCasing;
flat out vec3 color;
out float side;
void main() {
  vec4 found = colorOf(style);
  float bright = dot(found.rgb, vec3(0.3, 0.59, 0.11));
  color = isCasing ? (bright > 0.55 ? vec3(0.1, 0.07, 0.14) : vec3(1.0)) : found.rgb;
  float reach = halfWidth > 0.0 ? halfWidth + 0.5 : 0.0; // half a pixel fades out
  vec2 outwards = mat2(matrix.xy, matrix.zw) * miter / length(matrix.xy);
  side = (1.0 - 2.0 * float(gl_VertexID & 1)) * reach;
  gl_Position = found.a > 0.0 ? clip(placed(place) + shift + outwards * reach) : vec4(2.0, 2.0, 0.0, 1.0);
}`;

/** Fades out at the sides of a line. */
export const LINE_FRAGMENT = `#version 300 es
precision highp float;
flat in vec3 color;
in float side;
uniform float halfWidth;
uniform float strength;
out vec4 shown;
void main() {
  float a = halfWidth > 0.0 ? strength * clamp(halfWidth + 0.5 - abs(side), 0.0, 1.0) : strength;
  shown = vec4(color * a, a);
}`;

/** The four corners of a tile. */
export const QUAD_VERTEX = `${COMMON}
uniform float extent; // of the tile
out vec2 at;
void main() {
  at = vec2(float(gl_VertexID & 1), float(gl_VertexID >> 1));
  gl_Position = clip(placed(at * extent));
}`;

/** The picture of a tile. */
export const QUAD_FRAGMENT = `#version 300 es
precision highp float;
in vec2 at;
uniform sampler2D picture;
out vec4 shown;
void main() {
  vec4 color = texture(picture, at);
  shown = vec4(color.rgb * color.a, color.a);
}`;
