/** An echo server and its client, by blocking calls or by selectors. */
import java.io.InputStream;
import java.io.OutputStream;
import java.net.ConnectException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.net.StandardSocketOptions;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicLong;

public class Peer {
    static final int CONNECTIONS = 40;
    static final int BYTES = 1 << 20;

    public static void main(String[] args) throws Exception {
        switch (args[0]) {
            case "blocking-server" -> blockingServer(Integer.parseInt(args[1]));
            case "nio-server" -> nioServer(Integer.parseInt(args[1]));
            case "blocking-client" -> blockingClient(args[1], Integer.parseInt(args[2]));
            case "nio-client" -> nioClient(args[1], Integer.parseInt(args[2]));
            default -> throw new IllegalArgumentException(args[0]);
        }
    }

    static byte pattern(int connection, int at) {
        return (byte) (connection * 31 + at * 7 + (at >> 8) * 13);
    }

    static void check(boolean right, String what) {
        if (!right) throw new IllegalStateException(what);
    }

    static void blockingServer(int port) throws Exception {
        try (ServerSocket server = new ServerSocket()) {
            server.setReuseAddress(true);
            server.bind(new InetSocketAddress(port), 100);
            while (true) {
                Socket socket = server.accept();
                new Thread(() -> {
                    try (socket) {
                        socket.getInputStream().transferTo(socket.getOutputStream());
                        socket.shutdownOutput();
                    } catch (Exception error) {
                        error.printStackTrace();
                    }
                }).start();
            }
        }
    }

    static void nioServer(int port) throws Exception {
        Selector selector = Selector.open();
        ServerSocketChannel server = ServerSocketChannel.open();
        server.configureBlocking(false);
        server.bind(new InetSocketAddress(port), 100);
        server.register(selector, SelectionKey.OP_ACCEPT);
        while (true) {
            selector.select();
            for (var keys = selector.selectedKeys().iterator(); keys.hasNext(); ) {
                SelectionKey key = keys.next();
                keys.remove();
                if (key.isAcceptable()) {
                    SocketChannel channel = server.accept();
                    if (channel == null) continue;
                    channel.configureBlocking(false);
                    channel.setOption(StandardSocketOptions.TCP_NODELAY, true);
                    channel.register(selector, SelectionKey.OP_READ, ByteBuffer.allocateDirect(1 << 16));
                    continue;
                }
                SocketChannel channel = (SocketChannel) key.channel();
                ByteBuffer buffer = (ByteBuffer) key.attachment();
                if (key.isReadable() && channel.read(buffer) < 0) {
                    check(buffer.position() == 0, "an end before the echo was written");
                    channel.shutdownOutput();
                    channel.close();
                    continue;
                }
                buffer.flip();
                channel.write(buffer);
                buffer.compact();
                key.interestOps(buffer.position() == 0 ? SelectionKey.OP_READ : SelectionKey.OP_WRITE);
            }
        }
    }

    static void blockingClient(String host, int port) throws Exception {
        InetAddress address = InetAddress.getByName(host);
        AtomicLong total = new AtomicLong();
        List<Thread> threads = new ArrayList<>();
        List<Throwable> failures = java.util.Collections.synchronizedList(new ArrayList<>());
        for (int i = 0; i < CONNECTIONS; i++) {
            int connection = i;
            Thread thread = new Thread(() -> {
                try (Socket socket = new Socket()) {
                    socket.connect(new InetSocketAddress(address, port), 60_000);
                    socket.setTcpNoDelay(true);
                    socket.setKeepAlive(true);
                    check(socket.getTcpNoDelay() && socket.getKeepAlive(), "options");
                    check(socket.getPort() == port && socket.getInetAddress().equals(address), "peer's address");
                    Thread writer = new Thread(() -> {
                        try {
                            byte[] bytes = new byte[BYTES];
                            for (int at = 0; at < BYTES; at++) bytes[at] = pattern(connection, at);
                            OutputStream out = socket.getOutputStream();
                            out.write(bytes);
                            socket.shutdownOutput();
                        } catch (Exception error) {
                            failures.add(error);
                        }
                    });
                    writer.start();
                    InputStream in = socket.getInputStream();
                    byte[] got = in.readAllBytes();
                    writer.join();
                    check(got.length == BYTES, "length " + got.length);
                    for (int at = 0; at < BYTES; at++) check(got[at] == pattern(connection, at), "byte " + at);
                    total.addAndGet(got.length);
                } catch (Throwable error) {
                    failures.add(error);
                }
            });
            thread.start();
            threads.add(thread);
        }
        for (Thread thread : threads) thread.join();
        for (Throwable failure : failures) throw new IllegalStateException(failure);
        try (Socket socket = new Socket(address, port)) {
            socket.setSoTimeout(200);
            socket.getInputStream().read();
            throw new IllegalStateException("a byte from nowhere");
        } catch (SocketTimeoutException expected) {
            // As it should be.
        }
        refused(address);
        System.out.println(CONNECTIONS + " connections, " + total.get() + " bytes echoed");
    }

    static void refused(InetAddress address) throws Exception {
        try (Socket socket = new Socket(address, 9)) {
            throw new IllegalStateException("port 9 is served");
        } catch (ConnectException expected) {
            check(expected.getMessage().contains("refused"), expected.getMessage());
        }
    }

    /** What one connection of the selector's client has done. */
    static final class State {
        final int connection;
        final ByteBuffer out = ByteBuffer.allocate(BYTES);
        int received;

        State(int connection) {
            this.connection = connection;
            for (int at = 0; at < BYTES; at++) out.put(pattern(connection, at));
            out.flip();
        }
    }

    static void nioClient(String host, int port) throws Exception {
        InetSocketAddress address = new InetSocketAddress(host, port);
        Selector selector = Selector.open();
        for (int i = 0; i < CONNECTIONS; i++) {
            SocketChannel channel = SocketChannel.open();
            channel.configureBlocking(false);
            int interest = channel.connect(address) ? SelectionKey.OP_WRITE | SelectionKey.OP_READ : SelectionKey.OP_CONNECT;
            channel.register(selector, interest, new State(i));
        }
        int open = CONNECTIONS;
        long total = 0;
        ByteBuffer in = ByteBuffer.allocateDirect(1 << 16);
        while (open > 0) {
            check(selector.select(60_000) > 0, "a minute without an event");
            for (var keys = selector.selectedKeys().iterator(); keys.hasNext(); ) {
                SelectionKey key = keys.next();
                keys.remove();
                SocketChannel channel = (SocketChannel) key.channel();
                State state = (State) key.attachment();
                if (key.isConnectable()) {
                    check(channel.finishConnect(), "not connected");
                    check(channel.getRemoteAddress().equals(address), "peer's address " + channel.getRemoteAddress());
                    check(((InetSocketAddress) channel.getLocalAddress()).getPort() != 0, "own port");
                    key.interestOps(SelectionKey.OP_WRITE | SelectionKey.OP_READ);
                    continue;
                }
                if (key.isWritable()) {
                    channel.write(state.out);
                    if (!state.out.hasRemaining()) {
                        channel.shutdownOutput();
                        key.interestOps(SelectionKey.OP_READ);
                    }
                }
                if (key.isReadable()) {
                    in.clear();
                    if (channel.read(in) < 0) {
                        check(state.received == BYTES, "an end after " + state.received);
                        total += state.received;
                        channel.close();
                        open--;
                        continue;
                    }
                    in.flip();
                    while (in.hasRemaining()) {
                        check(in.get() == pattern(state.connection, state.received), "byte " + state.received);
                        state.received++;
                    }
                }
            }
        }
        SocketChannel channel = SocketChannel.open();
        channel.configureBlocking(false);
        try {
            if (!channel.connect(new InetSocketAddress(address.getAddress(), 9))) {
                channel.register(selector, SelectionKey.OP_CONNECT);
                check(selector.select(60_000) > 0, "no refusal in a minute");
                channel.finishConnect();
            }
            throw new IllegalStateException("port 9 is served");
        } catch (ConnectException expected) {
            check(expected.getMessage().contains("refused"), expected.getMessage());
        }
        System.out.println(CONNECTIONS + " connections, " + total + " bytes echoed");
    }
}
