// Server-sent events, read from a response as it comes.

/**
 * The `data` of each event, as text.
 * Lines may end in LF, CRLF or CR; comments (lines that begin with a colon) and other fields are passed over. An event
 * that is cut off by the end of the stream is dropped, as the standard says.
 * @param {ReadableStream<Uint8Array>} body
 */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = ""; // the beginning of a line
  let data = []; // lines of an event
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const lines = held.split(/\r\n|\n|\r(?!$)/); // a CR at the end may be half of a CRLF
      held = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // closes the connection: the server stops generating
  }
}
