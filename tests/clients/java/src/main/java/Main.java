import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import okhttp3.OkHttpClient;
import okhttp3.RequestBody;
import org.apache.hc.client5.http.classic.methods.HttpGet;
import org.apache.hc.client5.http.classic.methods.HttpPost;
import org.apache.hc.client5.http.impl.classic.CloseableHttpClient;
import org.apache.hc.client5.http.impl.classic.HttpClients;
import org.apache.hc.core5.http.io.entity.EntityUtils;
import org.apache.hc.core5.http.io.entity.StringEntity;
import reactor.core.publisher.Mono;
import reactor.netty.ByteBufFlux;
import reactor.netty.http.client.HttpClient;

/** Sends what it is told to on its standard input, with one client, as that client is by default. */
public final class Main {
    private static final String BODY = "hello";

    /** One request; its result is the status and the body. */
    interface Client {
        String send(String method, String uri) throws Exception;
    }

    public static void main(String[] arguments) throws Exception {
        Client client = switch (arguments[0]) {
            case "reactor-netty" -> reactorNetty();
            case "apache-httpclient" -> apacheHttpClient();
            case "jdk" -> jdk();
            case "okhttp" -> okHttp();
            default -> throw new IllegalArgumentException(arguments[0]);
        };
        ExecutorService threads = Executors.newCachedThreadPool(Main::daemon);
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            String[] words = line.split(" ");
            List<CompletableFuture<String>> wave = new ArrayList<>();
            for (int i = 0; i < Integer.parseInt(words[2]); i++) {
                wave.add(CompletableFuture.supplyAsync(() -> once(client, words[0], words[1]), threads));
            }
            wave.forEach(request -> System.out.println(request.join()));
        }
        System.exit(0);
    }

    private static Thread daemon(Runnable task) {
        Thread thread = new Thread(task);
        thread.setDaemon(true);
        return thread;
    }

    private static String once(Client client, String method, String uri) {
        try {
            String answer = client.send(method, uri);
            return answer.startsWith("200 ") ? "ok" : answer.strip();
        } catch (Exception thrown) {
            // Reactor's block() wraps what it throws.
            Throwable error = thrown.getClass().getName().startsWith("reactor.core.Exceptions") ? thrown.getCause() : thrown;
            return (error.getClass().getSimpleName() + ": " + error.getMessage()).replaceAll("\\s+", " ");
        }
    }

    private static Client reactorNetty() {
        HttpClient client = HttpClient.create();
        return (method, uri) -> {
            HttpClient.ResponseReceiver<?> request = method.equals("POST")
                ? client.post().uri(uri).send(ByteBufFlux.fromString(Mono.just(BODY)))
                : client.get().uri(uri);
            return request.responseSingle((response, body) ->
                body.asString().defaultIfEmpty("").map(text -> response.status().code() + " " + text)).block();
        };
    }

    private static Client apacheHttpClient() {
        CloseableHttpClient client = HttpClients.createDefault();
        return (method, uri) -> {
            var request = method.equals("POST") ? new HttpPost(uri) : new HttpGet(uri);
            if (method.equals("POST")) {
                request.setEntity(new StringEntity(BODY));
            }
            return client.execute(request, response -> response.getCode() + " " + EntityUtils.toString(response.getEntity()));
        };
    }

    private static Client jdk() {
        var client = java.net.http.HttpClient.newHttpClient();
        return (method, uri) -> {
            var request = HttpRequest.newBuilder(URI.create(uri));
            var built = method.equals("POST") ? request.POST(HttpRequest.BodyPublishers.ofString(BODY)) : request.GET();
            var response = client.send(built.build(), HttpResponse.BodyHandlers.ofString());
            return response.statusCode() + " " + response.body();
        };
    }

    private static Client okHttp() {
        OkHttpClient client = new OkHttpClient();
        return (method, uri) -> {
            var request = new okhttp3.Request.Builder().url(uri);
            if (method.equals("POST")) {
                request.post(RequestBody.create(BODY, null));
            }
            try (var response = client.newCall(request.build()).execute()) {
                return response.code() + " " + response.body().string();
            }
        };
    }
}
