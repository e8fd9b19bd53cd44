// The memory of suggesters, compiled: followers.py, lexicon.py and the trusts of suggest.py, with
// equal numbers. The reasons are explained there; comments here cover only what differs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace penstock::suggestions {

typedef int32_t Token;
typedef std::vector<Token> Tokens;

// The last tokens of a text, four at most, the newest last.
struct Context {
    static constexpr int LONGEST = 4;
    Token tokens[LONGEST] = {};
    int32_t length = 0;

    Context() = default;
    Context(const Token* end, int64_t count) : length(int32_t(std::min<int64_t>(count, LONGEST))) {
        std::copy(end - length, end, tokens);
    }
    Context then(Token token) const {
        Context next = last(std::min(length, LONGEST - 1));
        next.tokens[next.length++] = token;
        return next;
    }
    Context last(int count) const { return Context(tokens + length, count); }
    bool operator==(const Context& other) const {
        return length == other.length && std::equal(tokens, tokens + length, other.tokens);
    }
};

struct HashOfContext {
    size_t operator()(const Context& context) const {
        uint64_t hash = uint64_t(context.length);
        for (int at = 0; at < context.length; ++at) {
            hash = (hash ^ uint32_t(context.tokens[at])) * 0x9E3779B97F4A7C15u;
            hash ^= hash >> 29;
        }
        return hash;
    }
};

// A candidate for the next token. `grounds`: its evidence, packed into bits (suggest.py,
// followers.py).
struct Evidence {
    Token token;
    double share;
    int64_t grounds;
};

static inline Evidence* of_token(std::vector<Evidence>& found, Token token) {
    for (Evidence& each : found)
        if (each.token == token) return &each;
    return nullptr;
}

class Followers {
    static constexpr size_t MOST_CONTEXTS = 50'000, MOST_TOKENS = 16;
    static constexpr double FORGET_AT = 64, SEEN_OFTEN = 4;
    struct Count {
        Token token;
        double count;
    };
    std::unordered_map<Context, std::vector<Count>, HashOfContext> of;
    std::deque<Context> by_age;

    static int64_t magnitude(double count) {  // order of magnitude, in 3 bits
        int64_t whole = int64_t(count), bits = 0;
        for (; whole; whole >>= 1) ++bits;
        return std::min<int64_t>(bits, 7);
    }

    static void count(std::vector<Count>& counts, Token token) {
        auto same = [=](const Count& each) { return each.token == token; };
        auto found = std::find_if(counts.begin(), counts.end(), same);
        if (found == counts.end()) {
            if (counts.size() < MOST_TOKENS) {
                counts.push_back({token, 1});
                return;
            }
            auto less = [](const Count& a, const Count& b) { return a.count < b.count; };
            auto rarest = std::min_element(counts.begin(), counts.end(), less);
            if ((rarest->count -= 1) <= 0) {
                counts.erase(rarest);
                counts.push_back({token, 1});
            }
            return;
        }
        if ((found->count += 1) > FORGET_AT)
            for (Count& each : counts) each.count /= 2;
    }

  public:
    // Count each of `tokens[first:]` after the tokens before it.
    void learn(const Token* tokens, int64_t size, int64_t first) {
        for (int64_t at = std::max<int64_t>(1, first); at < size; ++at)
            for (int length = 1; length <= Context::LONGEST && length <= at; ++length) {
                Context context(tokens + at, length);
                auto [place, is_new] = of.try_emplace(context);
                if (!is_new) {
                    count(place->second, tokens[at]);
                    continue;
                }
                place->second.push_back({tokens[at], 1});
                by_age.push_back(context);
                if (of.size() > MOST_CONTEXTS)
                    for (size_t left = MOST_CONTEXTS / 8 + 1; left; --left) {
                        of.erase(by_age.front());
                        by_age.pop_front();
                    }
            }
    }

    void after(const Context& tail, std::vector<Evidence>& found) const {
        for (int length = tail.length; length > 0; --length) {
            auto place = of.find(tail.last(length));
            if (place == of.end()) continue;
            double total = 0;
            for (const Count& each : place->second) total += each.count;
            int64_t grounds = (int64_t(length) << 6) + magnitude(total);
            for (const Count& each : place->second)
                if (!of_token(found, each.token))
                    found.push_back(
                        {each.token, each.count / (total + 1.0), grounds + (magnitude(each.count) << 3)}
                    );
            if (total >= SEEN_OFTEN) return;
        }
    }
};

class Lexicon {
    static constexpr int64_t MOST_PROMPT = 128, MOST_ANSWER = 128;
    static constexpr size_t MOST_COMPANIONS = 48, MOST_WORDS = 8192;
    static constexpr double COMMON = 0.25, LEAST_SHARE = 0.6, LEAST_LIFT = 3.0;
    static constexpr int64_t COMMON_FROM = 8, MOST_SURE = 4;
    struct Met {
        int64_t together, number;
    };
    struct Companions {
        int64_t age;
        std::unordered_map<Token, Met> met;
    };
    int64_t requests = 0, ages = 0;
    std::unordered_map<Token, int64_t> prompts, answers;
    std::unordered_map<Token, Companions> companions;
    std::map<int64_t, Token> by_age;

    static Tokens once(const Token* begin, const Token* end) {
        Tokens found;
        std::unordered_set<Token> known;
        for (; begin != end; ++begin)
            if (known.insert(*begin).second) found.push_back(*begin);
        return found;
    }

    void forget(Token asked) {
        auto place = companions.find(asked);
        if (place == companions.end()) return;
        by_age.erase(place->second.age);
        companions.erase(place);
    }

    static void keep_most(std::unordered_map<Token, Met>& met) {
        std::vector<std::pair<Token, Met>> most(met.begin(), met.end());
        std::sort(most.begin(), most.end(), [](const auto& a, const auto& b) {
            if (a.second.together != b.second.together) return a.second.together > b.second.together;
            return a.second.number < b.second.number;
        });
        most.resize(MOST_COMPANIONS);
        met.clear();
        for (auto& [token, each] : most) met[token] = {each.together, int64_t(met.size())};
    }

  public:
    // The last tokens of a prompt, each once: those that the lexicon counts.
    static Tokens end_of(const Token* prompt, int64_t size) {
        return once(prompt + std::max<int64_t>(0, size - MOST_PROMPT), prompt + size);
    }

    // `prompt`: as `end_of` returns it.
    void learn(const Tokens& prompt, const Token* answer, int64_t size) {
        ++requests;
        Tokens said = once(answer, answer + std::min(size, MOST_ANSWER));
        for (Token token : said) ++answers[token];
        for (Token asked : prompt) {
            int64_t seen = ++prompts[asked];
            if (requests >= COMMON_FROM && double(seen) > COMMON * double(requests)) {
                forget(asked);
                continue;
            }
            auto [place, is_new] = companions.try_emplace(asked);
            Companions& those = place->second;
            if (is_new) by_age[those.age = ages++] = asked;
            for (Token token : said) {
                Met& each = those.met.try_emplace(token, Met{0, ages++}).first->second;
                ++each.together;
            }
            if (those.met.size() > 2 * MOST_COMPANIONS) keep_most(those.met);
        }
        while (companions.size() > MOST_WORDS) {
            Token oldest = by_age.begin()->second;
            forget(oldest);
            prompts.erase(oldest);
        }
    }

    std::unordered_map<Token, int64_t> expected(const Tokens& prompt) const {
        std::unordered_map<Token, int64_t> found;
        for (Token asked : prompt) {
            auto place = companions.find(asked);
            if (place == companions.end()) continue;
            int64_t seen = prompts.at(asked), sure = 0;
            for (int64_t rest = seen; rest && sure < MOST_SURE; rest >>= 1) ++sure;
            for (const auto& [token, met] : place->second.met) {
                if (double(met.together) < LEAST_SHARE * double(seen)) continue;
                double alone = LEAST_LIFT * double(seen) * double(answers.at(token));
                if (double(met.together * requests) < alone) continue;
                int64_t& known = found[token];
                known = std::max(known, sure);
            }
        }
        return found;
    }
};

// How often candidates with equal evidence are right.
struct Trust {
    static constexpr double MANY = 128;
    double right, seen = 4;

    explicit Trust(double share) : right(4 * share) {}
    double share() const { return right / seen; }
    void observe(bool was_right) {
        right += was_right;
        seen += 1;
        if (seen > MANY) right /= 2, seen /= 2;
    }
};

struct Memory {
    Followers followers;
    Lexicon lexicon;
    std::unordered_map<int64_t, Trust> trusts;
};

}  // namespace penstock::suggestions
