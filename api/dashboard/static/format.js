// Numbers and times, as people read them.

const plain = new Intl.NumberFormat();
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

export const number = (value) => plain.format(value);
export const compact = (value) => (Math.abs(value) < 10000 ? plain.format(value) : short.format(value));
export const at = (unix) => (unix ? moment.format(unix * 1000) : "");

/** 4 s, 3 min 20 s, 5 h 2 min, 2 d 3 h. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const first = UNITS.findIndex(([, size]) => whole >= size);
  if (first < 0) return "0 s";
  const [unit, size] = UNITS[first];
  const rest = UNITS[first + 1];
  const left = rest ? Math.floor((whole % size) / rest[1]) : 0;
  const head = `${Math.floor(whole / size)} ${unit}`;
  return left ? `${head} ${left} ${rest[0]}` : head;
}

/** A time of a call: 85 ms, 2.4 s, 3 min 5 s. */
export function latency(seconds) {
  if (seconds === 0) return "0";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 100 ? `${seconds.toFixed(1)} s` : duration(seconds);
}

export function rate(linesPerSecond) {
  if (linesPerSecond === 0 || linesPerSecond >= 100) return number(Math.round(linesPerSecond));
  return linesPerSecond >= 1 ? linesPerSecond.toFixed(1) : linesPerSecond.toFixed(2);
}

export function bytes(count) {
  if (count < 1000) return `${count} B`;
  const power = Math.min(4, Math.floor(Math.log10(count) / 3));
  return `${(count / 1000 ** power).toFixed(1)} ${["", "kB", "MB", "GB", "TB"][power]}`;
}

export const percent = (part, whole) => (whole ? (100 * part) / whole : 0);
