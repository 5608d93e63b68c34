-- Arguments: none, or a file with one request a line: target, then TAB and a field for each field.
-- At the end one line of JSON on standard output.
function init(args)
   if #args == 0 then return end
   local requests, count, at = {}, 0, 0
   for line in io.lines(args[1]) do
      local target, fields = nil, {}
      for part in line:gmatch("[^\t]+") do
         if target then
            local name, value = part:match("^(.-): (.*)$")
            fields[name] = value
         else
            target = part
         end
      end
      count = count + 1
      requests[count] = wrk.format("GET", target, fields)
   end
   request = function()
      at = at % count + 1
      return requests[at]
   end
end

function done(summary)
   local errors = summary.errors
   local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
   io.write(string.format(
      'RESULT {"microseconds": %d, "requests": %d, "bytes": %.0f, "failed": %d}\n',
      summary.duration, summary.requests, summary.bytes, failed))
end
