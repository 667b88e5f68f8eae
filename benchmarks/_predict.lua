-- wrk's script: the requests of a file, one JSON body per line, in turn; figures as one line of JSON.

local requests, at = {}, 0

function init(arguments)
    for line in io.lines(arguments[1]) do
        requests[#requests + 1] = wrk.format("POST", "/predict", { ["Content-Type"] = "application/json" }, line)
    end
end

function request()
    at = at % #requests + 1
    return requests[at]
end

function done(summary, latency)
    local failed = summary.errors
    io.write(string.format(
        '\n{"requests": %d, "seconds": %.6f, "p50": %.3f, "p99": %.3f, "errors": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        failed.connect + failed.read + failed.write + failed.status + failed.timeout
    ))
end
