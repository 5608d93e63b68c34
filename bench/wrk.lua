-- Arguments: the first and the last second (since 1970) of what counts, and a file with one request a line: target, then
-- TAB and a field for each field; in a field, {number} stands for the number of the request. At the end one line of JSON
-- on standard output.
-- What happens before the first second, such as handshakes, and after the last one is no part of the result.
local requests, rests, count, at, from, to = {}, {}, 0, 0, 0, 0
asked, first, last = 0, -1, -1 -- global: done() asks the thread for them

function setup(thread)
   worker = thread
end

function init(args)
   from, to = tonumber(args[1]), tonumber(args[2])
   for line in io.lines(args[3]) do
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
      local whole = wrk.format("GET", target, fields)
      local before, after = whole:match("^(.-){number}(.*)$")
      requests[count], rests[count] = before or whole, after
   end
end

function request()
   if last < 0 then
      local now = os.time()
      if first < 0 and now >= from then first = asked end
      if now >= to then last = asked end
   end
   asked = asked + 1
   at = at % count + 1
   local rest = rests[at]
   return rest and requests[at] .. asked .. rest or requests[at]
end

function done(summary)
   local errors = summary.errors
   local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
   local first, last, asked = worker:get("first"), worker:get("last"), worker:get("asked")
   if last < 0 then last = asked end
   if first < 0 then first = last end
   io.write(string.format('RESULT {"counted": %d, "requests": %d, "failed": %d}\n',
      last - first, summary.requests, failed))
end
