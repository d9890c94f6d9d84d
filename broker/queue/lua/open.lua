-- OPEN: writes prompts of the run, and at last its specification, with which a finished run goes on. Idempotent.
---@param epoch number
---@param spec string  the specification as JSON; empty while more prompts follow
---@param lane string
---@param prompts {index: number, body: string}[]
local refused = fence(epoch)
if refused then return refused end
for _, prompt in ipairs(prompts) do redis.call('HSET', P .. 'prompts:' .. lane, prompt.index, prompt.body) end
-- Last, so that a service which reads the specification finds every prompt.
if spec ~= '' then
  redis.call('SET', P .. 'spec', spec)
  redis.call('HSET', STATE, 'finished', 0)
end
return 1
