import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;

/** A server of words that it holds on its heap; one request, one answer, for each connection. */
class Heap {
    static final int CHUNK = 8192;
    static long[][] chunks = {};

    public static void main(String[] args) throws Exception {
        var address = InetAddress.getByName("127.0.0.1");
        try (var server = new ServerSocket(Integer.parseInt(args[0]), 16, address)) {
            while (true) {
                try (Socket client = server.accept()) {
                    var in = new BufferedReader(new InputStreamReader(client.getInputStream()));
                    var out = client.getOutputStream();
                    out.write((answer(in.readLine().split(" ")) + "\n").getBytes());
                }
            }
        }
    }

    static String answer(String[] request) {
        return switch (request[0]) {
            case "load" -> load(Integer.parseInt(request[1]));
            case "get" -> get(Integer.parseInt(request[1]));
            case "state" -> state();
            default -> "unknown request";
        };
    }

    static String load(int words) {
        chunks = new long[words / CHUNK][CHUNK];
        for (int i = 0; i < words; i++) {
            chunks[i / CHUNK][i % CHUNK] = (i + 1) * 0x9E3779B97F4A7C15L;
        }
        return Integer.toString(chunks.length * CHUNK);
    }

    static String get(int index) {
        return Long.toUnsignedString(chunks[index / CHUNK][index % CHUNK]);
    }

    static String state() {
        long digest = 0;
        for (long[] chunk : chunks) {
            for (long word : chunk) {
                digest = digest * 31 + word;
            }
        }
        return chunks.length * CHUNK + " words, digest " + Long.toHexString(digest);
    }
}
